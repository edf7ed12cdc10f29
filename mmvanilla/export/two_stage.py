# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmdet's Faster R-CNN and Mask R-CNN, from an image to boxes and masks."""
import copy

import torch
import torch.nn.functional as F
import torchvision
from mmcv.cnn import fuse_conv_bn
from torch import Tensor, nn

from ..utils.errors import UserError
from .dense_detectors import BOX_FORMAT, NMS, DensePredictions, decode

PASTING = ('masks[i] is the probability over boxes[i]: resize it to the box '
           '(bilinear, pixel centres at +0.5) and compare with '
           'mask_thr_binary')


class TwoStageDetector(nn.Module):
    """Faster R-CNN or Mask R-CNN."""

    task, predicts = 'detection', True

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        _check_parts(model)
        # A batch norm asks whether there are any regions, which an exporter
        # cannot decide.
        self.model = fuse_conv_bn(copy.deepcopy(model))
        self.input_size = tuple(example.shape[2:])
        self.test_cfg = cfg = self.model.roi_head.test_cfg
        rpn_head = self.model.rpn_head
        rpn_cfg = rpn_head.test_cfg
        self.rpn = DensePredictions(self.model, rpn_head, example)
        self.rpn_nms = NMS(rpn_cfg.nms, rpn_cfg.max_per_img)
        self.nms = NMS(cfg.nms, cfg.max_per_img)
        self.output_names = ('boxes', 'scores', 'labels')
        self.settings = dict(
            box_format=BOX_FORMAT, score_thr=cfg.score_thr,
            **self.nms.settings, rpn_nms_pre=rpn_cfg.get('nms_pre', -1),
            rpn_nms_iou_threshold=self.rpn_nms.iou_threshold,
            rpn_max_per_img=self.rpn_nms.max_per_img)
        if self.model.roi_head.with_mask:
            self.output_names += ('masks', )
            self.settings.update(mask_format=PASTING,
                                 mask_thr_binary=cfg.mask_thr_binary)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(1, C, H, W) -> boxes, scores, labels and masks over the boxes."""
        feats = self.model.extract_feat(images)
        boxes, scores, _, levels = self.rpn(feats)
        proposals = boxes[self.rpn_nms(boxes, scores, levels)]
        boxes, scores, labels = self._detect(feats, proposals)
        if 'masks' not in self.output_names:
            return boxes, scores, labels
        return boxes, scores, labels, self._segment(feats, boxes, labels)

    def _detect(self, feats, proposals: Tensor) -> tuple[Tensor, ...]:
        head = self.model.roi_head.bbox_head
        # Padded with empty proposals to a constant number: the heads and the
        # coder have Python branches on whether there are any.
        limit = self.rpn_nms.max_per_img
        real = F.pad(torch.ones_like(proposals[:, 0]), (0, limit))[:limit] > 0
        proposals = F.pad(proposals, (0, 0, 0, limit))[:limit]
        cls_score, deltas = (x.float() for x in head(
            extract_rois(self.model.roi_head.bbox_roi_extractor, feats,
                         proposals)))
        scores = (head.loss_cls.get_activation(cls_score)
                  if head.custom_cls_channels else cls_score.softmax(-1))
        num_classes = head.num_classes
        scores = scores[:, :num_classes]
        # The head predicts a box for each class, or one for all classes.
        per_roi = 1 if head.reg_class_agnostic else num_classes
        boxes = decode(
            head.bbox_coder, proposals.repeat_interleave(per_roi, 0),
            deltas.reshape(-1, head.bbox_coder.encode_size), self.input_size)
        boxes = boxes.reshape(-1, per_roi, 4).expand(
            -1, num_classes, -1).reshape(-1, 4)
        valid = (scores > self.test_cfg.score_thr) & real[:, None]
        index = valid.flatten().nonzero()[:, 0]
        boxes, scores = boxes[index], scores.flatten()[index]
        labels = index % num_classes
        keep = self.nms(boxes, scores, labels)
        return boxes[keep], scores[keep], labels[keep]

    def _segment(self, feats, boxes: Tensor, labels: Tensor) -> Tensor:
        roi_head = self.model.roi_head
        masks = roi_head.mask_head(
            extract_rois(roi_head.mask_roi_extractor, feats, boxes)).float()
        if not roi_head.mask_head.class_agnostic:
            # The mask of each detection's class.
            index = labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            masks = masks.gather(1, index)
        return masks[:, 0].sigmoid()


def _check_parts(model: nn.Module) -> None:
    from mmcv.ops import RoIAlign
    from mmdet import models
    roi_head, heads = model.roi_head, (models.BBoxHead, models.FCNMaskHead)
    names = ('bbox', 'mask')[:1 + roi_head.with_mask]
    extractors = [getattr(roi_head, f'{x}_roi_extractor', 0) for x in names]
    for part, kind in (
            (model.rpn_head, models.RPNHead),
            (roi_head, models.StandardRoIHead),
            *((x, models.SingleRoIExtractor) for x in extractors),
            *zip([getattr(roi_head, f'{x}_head', 0) for x in names], heads)):
        # Subclasses of these heads differ in their layers only. Subclasses of
        # the other parts compute something else.
        if not (isinstance(part, kind)
                if kind in heads else type(part) is kind):
            raise UserError(
                f'a {type(model).__name__} with a {type(part).__name__} '
                f'cannot be exported whole, only one with a {kind.__name__}; '
                'use --part backbone')
    if getattr(roi_head, 'with_shared_head', False) or not all(
            isinstance(layer, RoIAlign) and layer.pool_mode == 'avg'
            for x in extractors for layer in x.roi_layers):
        raise UserError('a detector that is exported whole must pool its '
                        'regions by RoIAlign with pool_mode "avg" and have no '
                        'shared_head; use --part backbone')


def extract_rois(extractor: nn.Module, feats, boxes: Tensor) -> Tensor:
    """The outputs of a ``SingleRoIExtractor`` for the boxes of one image."""
    rois = F.pad(boxes, (1, 0))
    feats = feats[:extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(feats))
    pooled = boxes.new_zeros(boxes.shape[0], feats[0].shape[1],
                             *extractor.roi_layers[0].output_size)
    for i, (layer, feat) in enumerate(zip(extractor.roi_layers, feats)):
        index = (levels == i).nonzero()[:, 0]
        pooled = pooled.index_put((index, ), torchvision.ops.roi_align(
            feat.float(), rois[index], layer.output_size, layer.spatial_scale,
            layer.sampling_ratio, layer.aligned))
    return pooled.to(feats[0].dtype)
