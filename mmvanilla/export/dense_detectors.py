# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmdet's detectors with a dense head; boxes are selected as ONNX can."""
import torch
import torchvision
from torch import Tensor, nn

from ..utils.errors import UserError

BOX_FORMAT = 'x1, y1, x2, y2 in pixels of the input'


class DenseDetector(nn.Module):
    """RetinaNet, FCOS, ATSS, RTMDet and others with a dense head."""

    output_names = ('boxes', 'scores', 'labels')
    task, predicts = 'detection', True

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        from mmdet.models import RTMDetHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        head = getattr(model, 'bbox_head', None)
        names = ('predict', 'predict_by_feat', '_predict_by_feat_single',
                 '_bbox_post_process')
        if not isinstance(head, BaseDenseHead) or any(
                getattr(type(head), name) is not getattr(BaseDenseHead, name)
                for name in names):
            raise UserError(
                f'a {type(model).__name__} with a {type(head).__name__} '
                'cannot be exported whole: its head does not predict as '
                "mmdet's RetinaNet, FCOS, ATSS and RTMDet do; use --part "
                'backbone')
        cfg = head.test_cfg
        self.model = model
        self.input_size = tuple(example.shape[2:])
        self.dense = DensePredictions(model, head, example,
                                      cfg.get('score_thr', 0))
        self.nms = NMS(cfg.nms, cfg.max_per_img)
        # In int8 of OpenVINO, those of this head lost up to 3.5 points of AP.
        self.float_layers = (
            1 + head.stacked_convs if isinstance(head, RTMDetHead) else 0)
        self.settings = dict(
            box_format=BOX_FORMAT, score_thr=self.dense.score_thr,
            nms_pre=cfg.get('nms_pre', -1), **self.nms.settings)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, C, H, W) -> boxes (D, 4), scores, labels (D, ), best first."""
        boxes, scores, labels, _ = self.dense(self.model.extract_feat(images))
        keep = self.nms(boxes, scores, labels)
        return boxes[keep], scores[keep], labels[keep]


class DensePredictions(nn.Module):
    """The boxes that a dense head predicts for one image, before the NMS."""

    def __init__(self, model: nn.Module, head: nn.Module,
                 example: Tensor, score_thr: float = -1):
        super().__init__()
        self.head, self.test_cfg = head, head.test_cfg
        self.score_thr, self.input_size = score_thr, tuple(example.shape[2:])
        with torch.no_grad():
            cls_scores = head(model.extract_feat(example))[0]
        # No buffers, which would be rounded with the weights.
        self.priors = head.prior_generator.grid_priors(
            [x.shape[-2:] for x in cls_scores], dtype=example.dtype,
            device=example.device)

    def forward(self, feats) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature maps -> boxes (K, 4), scores, labels, levels (K, )."""
        levels = [self._select(i, *(x.float() for x in maps))
                  for i, maps in enumerate(zip(*self.head(feats)))]
        priors, deltas, scores, labels, factors, level = map(
            torch.cat, zip(*levels))
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
        """The ``nms_pre`` pairs of prior and class with the highest scores."""
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
        num_classes, count = scores.shape[1], scores.numel()
        # mmdet drops scores below the threshold first, with the same result;
        # in this order the number of boxes is a constant.
        if self.test_cfg.get('nms_pre', -1) > 0:
            count = min(count, self.test_cfg.nms_pre)
        scores, index = scores.flatten().topk(count)
        prior = index // num_classes
        # What scores are multiplied by, for example the centerness.
        factor = (
            torch.ones_like(scores) if factor is None else
            factor[0].permute(1, 2, 0).reshape(-1).sigmoid()[prior])
        labels = index % num_classes
        return (self.priors[i][prior], deltas[prior], scores, labels, factor,
                torch.full_like(labels, i))


def decode(coder, priors: Tensor, deltas: Tensor,
           input_size: tuple[int, int]) -> Tensor:
    """Decode boxes that a head predicts relative to priors."""
    boxes = coder.decode(priors, deltas, max_shape=input_size)
    return getattr(boxes, 'tensor', boxes)


class NMS(nn.Module):
    """Non-maximum suppression within each group of boxes, as mmcv does it."""

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
        self.settings = dict(nms_iou_threshold=self.iou_threshold,
                             nms_class_agnostic=self.class_agnostic,
                             max_per_img=max_per_img)

    def forward(self, boxes: Tensor, scores: Tensor,
                groups: Tensor) -> Tensor:
        """Indices of the boxes to keep, in descending order of the score."""
        if not self.class_agnostic:
            # An offset for each group keeps boxes of different groups from
            # overlapping. The zero is for an image without boxes.
            largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
            boxes = boxes + (groups.to(boxes) * (largest + 1))[:, None]
        keep = torchvision.ops.nms(boxes, scores, self.iou_threshold)
        return keep[:self.max_per_img] if self.max_per_img > 0 else keep
