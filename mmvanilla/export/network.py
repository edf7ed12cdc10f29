# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The part of a model that is exported, and its metadata."""
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..utils.configs import class_names
from ..utils.errors import UserError
from ..version import __version__
from .dense_detectors import DenseDetector
from .segmentors import Segmentor
from .two_stage import TwoStageDetector


class Network(nn.Module):
    """A classifier's logits, or a backbone's feature maps, of images."""

    predicts = False  # the outputs are logits or features

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None,
                 neck: nn.Module | None = None, num_outputs: int = 1) -> None:
        super().__init__()
        self.output_names = ('logits', ) if head is not None else tuple(
            f'feature_{i}' for i in range(num_outputs))
        self.backbone, self.head, self.neck = backbone, head, neck

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> [(N, num_classes)], or the feature maps."""
        feats = self.backbone(x)
        if self.neck is not None:
            feats = self.neck(feats)
        return list(feats) if self.head is None else [self.head(feats)]


@torch.no_grad()
def make_network(model: nn.Module, part: str, example: Tensor) -> nn.Module:
    """The part ('model' or 'backbone') that is exported, in eval mode.

    It has ``output_names`` and ``predicts``: whether its outputs are the
    toolbox's predictions.
    """
    if not hasattr(model, 'backbone'):
        raise UserError(f'a {type(model).__name__} has no backbone to export')
    if part == 'backbone':
        outputs = model.backbone.eval()(example)
        return Network(model.backbone, num_outputs=len(outputs)).eval()
    size = tuple(example.shape[2:])
    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        return TwoStageDetector(model, size).eval()
    if hasattr(model, 'bbox_head'):
        return DenseDetector(model, size).eval()
    if hasattr(model, 'decode_head'):
        return Segmentor(model).eval()
    if not hasattr(model, 'head'):
        raise UserError(
            f'a {type(model).__name__} is exported by its backbone: use '
            '--part backbone')
    return Network(model.backbone, model.head,
                   getattr(model, 'neck', None)).eval()


def describe(cfg: Config, model: nn.Module, meta: dict, example: Tensor,
             part: str) -> dict[str, object]:
    """The metadata of the exported file: what a server needs to use it."""
    channels = example.shape[1]
    processor = model.data_preprocessor
    mean = getattr(processor, 'mean', None)
    std = getattr(processor, 'std', None)
    # OpenMMLab reads images as BGR, and its preprocessors may convert them.
    converted = bool(
        getattr(processor, 'to_rgb', False)
        or getattr(processor, '_channel_conversion', False))
    order = 'gray' if channels == 1 else 'RGB' if converted else 'BGR'
    return dict(
        labels=class_names(cfg, meta) if part == 'model' else [],
        mean=[0.0] * channels if mean is None else mean.flatten().tolist(),
        std=[1.0] * channels if std is None else std.flatten().tolist(),
        channel_order=order,
        input_size=list(example.shape[2:]),
        part=part,
        version=__version__)
