# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The part of a model that is exported."""
import torch
from mmpretrain.models import ClsHead
from torch import Tensor, nn

from ..utils.errors import UserError
from .dense_detectors import DenseDetector
from .two_stage import TwoStageDetector


class Network(nn.Module):
    """A classifier's logits, or a backbone's feature maps, of images."""

    predicts = False  # whether the outputs are the toolbox's predictions
    settings = {}  # for the metadata

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None,
                 neck: nn.Module | None = None, num_outputs: int = 1) -> None:
        super().__init__()
        self.output_names = ('logits', ) if head is not None else tuple(
            f'feature_{i}' for i in range(num_outputs))
        self.backbone, self.head, self.neck = backbone, head, neck
        # Other heads do not take the softmax of their logits.
        scores = getattr(type(head), '_get_predictions', None)
        self.task = 'features' if head is None else 'logits' if (
            scores is not ClsHead._get_predictions) else 'classification'

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> [(N, num_classes)], or the feature maps."""
        feats = self.backbone(x)
        if self.neck is not None:
            feats = self.neck(feats)
        return list(feats) if self.head is None else [self.head(feats)]


class Segmentor(nn.Module):
    """A segmentor with any decode head of mmseg."""

    output_names = ('logits', 'labels')
    task, predicts = 'segmentation', True

    def __init__(self, model: nn.Module):
        super().__init__()
        if not hasattr(model, 'encode_decode'):
            raise UserError(f'a {type(model).__name__} cannot be exported '
                            'whole, only an EncoderDecoder of mmseg; use '
                            '--part backbone')
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise UserError(
                f"test_cfg.mode is '{mode}', but a segmentor is exported for "
                'whole images; use --cfg-options model.test_cfg.mode=whole')
        self.model = model
        self.settings = dict(
            align_corners=model.align_corners,
            threshold=getattr(model.decode_head, 'threshold', None))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> logits (N, classes, H, W) and labels (N, H, W)."""
        size = tuple(images.shape[2:])
        logits = self.model.encode_decode(
            images, [dict(img_shape=size, ori_shape=size, pad_shape=size)])
        if logits.shape[1] > 1:
            return logits, logits.argmax(1)
        threshold = self.settings['threshold']
        return logits, (logits[:, 0].sigmoid() > threshold).long()


@torch.no_grad()
def make_network(model: nn.Module, part: str, example: Tensor) -> nn.Module:
    """The part ('model' or 'backbone') that is exported, in eval mode."""
    if not hasattr(model, 'backbone'):
        raise UserError(f'a {type(model).__name__} has no backbone to export')
    if part == 'backbone':
        outputs = model.backbone.eval()(example)
        return Network(model.backbone, num_outputs=len(outputs)).eval()
    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        return TwoStageDetector(model, example).eval()
    if hasattr(model, 'bbox_head'):
        return DenseDetector(model, example).eval()
    if hasattr(model, 'decode_head'):
        return Segmentor(model).eval()
    if not hasattr(model, 'head'):
        raise UserError(f'a {type(model).__name__} is exported by its '
                        'backbone: use --part backbone')
    return Network(model.backbone, model.head,
                   getattr(model, 'neck', None)).eval()
