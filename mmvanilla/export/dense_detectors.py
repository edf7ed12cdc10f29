# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmdet's detectors with a dense head, from an image to boxes.

mmdet selects boxes with Python's control flow and mmcv's compiled ops, which
no exporter reads. The modules here call the detector's own parts (backbone,
neck, head, anchors or points, bounding box coder) and select with operators
that ONNX has.
"""
import torch
import torchvision
from torch import Tensor, nn

from ..utils.errors import UserError

BOX_FORMAT = 'x1, y1, x2, y2 in pixels of the input'


class DenseDetector(nn.Module):
    """A detector with a dense head: RetinaNet, FCOS, ATSS, RTMDet and others.

    Args:
        model (nn.Module): An mmdet detector whose ``bbox_head`` predicts as
            mmdet's ``BaseDenseHead`` does, on anchors or on points.
        input_size (tuple[int, int]): Height and width of the input, for which
            the anchors are computed.

    Raises:
        UserError: If the head overrides how ``BaseDenseHead`` predicts, or
            its ``test_cfg`` has another NMS than ``type='nms'``.
    """

    output_names = ('boxes', 'scores', 'labels')
    predicts = True  # the outputs are the toolbox's predictions

    def __init__(self, model: nn.Module, input_size: tuple[int, int]):
        super().__init__()
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        head = getattr(model, 'bbox_head', None)
        if not _has_methods_of(head, BaseDenseHead, 'predict',
                               'predict_by_feat', '_predict_by_feat_single',
                               '_bbox_post_process'):
            raise UserError(
                f'a {type(model).__name__} with a {type(head).__name__} '
                'cannot be exported whole: its head does not predict as '
                "mmdet's RetinaNet, FCOS, ATSS and RTMDet do; take --part "
                'backbone')
        self.model = model
        self.input_size = tuple(input_size)
        self.dense = DensePredictions(model, head, input_size,
                                      head.test_cfg.get('score_thr', 0))
        self.nms = NMS(head.test_cfg.nms, head.test_cfg.max_per_img)

    def settings(self) -> dict[str, object]:
        """The metadata of the file that describe the outputs."""
        return dict(
            outputs=list(self.output_names),
            box_format=BOX_FORMAT,
            score_thr=self.dense.score_thr,
            nms_pre=self.dense.test_cfg.get('nms_pre', -1),
            nms_iou_threshold=self.nms.iou_threshold,
            nms_class_agnostic=self.nms.class_agnostic,
            max_per_img=self.nms.max_per_img)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images (Tensor): One normalized image, (1, C, H, W).

        Returns:
            tuple[Tensor]: Boxes (D, 4), as x1, y1, x2, y2 in pixels of the
            input, scores (D, ) and labels (D, ), in descending order of the
            score.
        """
        boxes, scores, labels, _ = self.dense(self.model.extract_feat(images))
        keep = self.nms(boxes, scores, labels)
        return boxes[keep], scores[keep], labels[keep]


def _has_methods_of(head, base: type, *names: str) -> bool:
    return isinstance(head, base) and all(
        getattr(type(head), name) is getattr(base, name) for name in names)


class DensePredictions(nn.Module):
    """The boxes that a dense head predicts for one image, before the NMS.

    Args:
        model (nn.Module): The detector. It is run once, on an image of zeros,
            to find the sizes of its feature maps.
        head (nn.Module): Its dense head.
        input_size (tuple[int, int]): Height and width of the input.
        score_thr (float): Boxes with a score above it are kept. Defaults to
            -1: all boxes, as for a region proposal network.
    """

    def __init__(self, model: nn.Module, head: nn.Module,
                 input_size: tuple[int, int], score_thr: float = -1):
        super().__init__()
        self.score_thr = score_thr
        self.head = head
        self.test_cfg = head.test_cfg
        self.input_size = tuple(input_size)
        parameter = next(model.parameters())
        with torch.no_grad():
            cls_scores = head(
                model.extract_feat(
                    parameter.new_zeros(1, _in_channels(model),
                                        *self.input_size)))[0]
        priors = head.prior_generator.grid_priors(
            [x.shape[-2:] for x in cls_scores],
            dtype=parameter.dtype,
            device=parameter.device)
        self.num_levels = len(priors)
        for i, level in enumerate(priors):
            self.register_buffer(f'priors_{i}', level, persistent=False)

    def forward(self, feats) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode the head's outputs for one image.

        Args:
            feats (Sequence[Tensor]): The feature maps, each (1, C, H_i, W_i).

        Returns:
            tuple[Tensor]: Boxes (K, 4), scores, labels and levels, (K, ).
        """
        levels = [
            self._select(i, *maps)
            for i, maps in enumerate(zip(*self.head(feats)))
        ]
        priors, deltas, scores, labels, factors = map(torch.cat, zip(*levels))
        level = torch.cat([
            torch.full_like(labels, i)
            for i, (_, _, _, labels, _) in enumerate(levels)
        ])
        boxes = decode(self.head.bbox_coder, priors, deltas, self.input_size)
        valid = scores > self.score_thr
        min_size = self.test_cfg.get('min_bbox_size', -1)
        if min_size >= 0:
            sides = boxes[:, 2:] - boxes[:, :2]
            valid = valid & (sides > min_size).all(1)
        index = valid.nonzero()[:, 0]
        return (boxes[index], (scores * factors)[index], labels[index],
                level[index])

    def _select(self, i: int, cls_score: Tensor, bbox_pred: Tensor,
                factor: Tensor | None = None) -> tuple[Tensor, ...]:
        """The ``nms_pre`` pairs of prior and class with the highest scores.

        Args:
            i (int): The level.
            cls_score (Tensor): Logits, (1, priors * classes, H_i, W_i).
            bbox_pred (Tensor): Boxes relative to the priors,
                (1, priors * 4, H_i, W_i).
            factor (Tensor, optional): Logits of what scores are multiplied
                by, as centerness, (1, priors, H_i, W_i). Defaults to None.

        Returns:
            tuple[Tensor]: Priors, boxes relative to them, scores, labels and
            factors, K of each.
        """
        head = self.head
        cls_score = cls_score[0].permute(1, 2, 0).reshape(
            -1, head.cls_out_channels)
        deltas = bbox_pred[0].permute(1, 2, 0).reshape(
            -1, head.bbox_coder.encode_size)
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            scores = head.loss_cls.get_activation(cls_score)
        elif head.use_sigmoid_cls:
            scores = cls_score.sigmoid()
        else:
            scores = cls_score.softmax(-1)[:, :-1]
        num_classes = scores.shape[1]
        # mmdet drops scores below the threshold first. The result is the
        # same, and in this order the number of boxes is a constant.
        nms_pre = self.test_cfg.get('nms_pre', -1)
        count = scores.numel()
        if nms_pre > 0:
            count = min(count, nms_pre)
        scores, index = scores.flatten().topk(count)
        prior = index // num_classes
        factor = (
            torch.ones_like(scores) if factor is None else
            factor[0].permute(1, 2, 0).reshape(-1).sigmoid()[prior])
        return (getattr(self, f'priors_{i}')[prior], deltas[prior], scores,
                index % num_classes, factor)


def _in_channels(model: nn.Module) -> int:
    return next(m.in_channels for m in model.backbone.modules()
                if isinstance(m, nn.Conv2d))


def decode(coder, priors: Tensor, deltas: Tensor,
           input_size: tuple[int, int]) -> Tensor:
    """Decode boxes that a head predicts relative to priors.

    Args:
        coder: The head's ``bbox_coder``.
        priors (Tensor): Anchors or regions, (K, 4), or points, (K, 2).
        deltas (Tensor): The head's outputs for them, (K, coder.encode_size).
        input_size (tuple[int, int]): Height and width that boxes are clipped
            to.

    Returns:
        Tensor: x1, y1, x2, y2, (K, 4).
    """
    boxes = coder.decode(priors, deltas, max_shape=input_size)
    return getattr(boxes, 'tensor', boxes)


class NMS(nn.Module):
    """Non-maximum suppression within each group of boxes, as mmcv does it.

    Args:
        cfg (dict): ``nms`` of a ``test_cfg``.
        max_per_img (int): How many boxes to keep at most; all where it is
            not positive.

    Raises:
        UserError: If ``cfg`` has another type than 'nms', another setting, or
            no ``iou_threshold``.
    """

    def __init__(self, cfg: dict, max_per_img: int):
        super().__init__()
        cfg = dict(cfg)
        kind = cfg.pop('type', 'nms')
        self.iou_threshold = cfg.pop('iou_threshold', None)
        self.class_agnostic = cfg.pop('class_agnostic', False)
        cfg.pop('split_thr', None)  # mmcv's speed, not its result
        if kind != 'nms' or cfg or self.iou_threshold is None:
            raise UserError(
                "test_cfg.nms must be dict(type='nms', iou_threshold=...) for "
                'a detector that is exported, but it has '
                f'{dict(cfg, type=kind)}')
        self.max_per_img = max_per_img

    def forward(self, boxes: Tensor, scores: Tensor,
                groups: Tensor) -> Tensor:
        """Indices of the boxes to keep, in descending order of the score.

        Args:
            boxes (Tensor): (K, 4).
            scores (Tensor): (K, ).
            groups (Tensor): Label or level of each, (K, ). Boxes of different
                groups do not suppress one another.
        """
        if not self.class_agnostic:
            # An offset for each group keeps boxes of different groups from
            # overlapping. The zero is for an image without boxes.
            largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
            boxes = boxes + (groups.to(boxes) * (largest + 1))[:, None]
        keep = torchvision.ops.nms(boxes, scores, self.iou_threshold)
        return keep[:self.max_per_img] if self.max_per_img > 0 else keep
