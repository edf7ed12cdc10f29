# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The part of a model that is exported, and its metadata."""
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..utils.data import class_names
from ..utils.errors import UserError
from ..utils.files import MARK
from ..version import __version__
from .dense_detectors import DenseDetector
from .segmentors import Segmentor
from .two_stage import TwoStageDetector


class Network(nn.Module):
    """A classifier's logits, or a backbone's feature maps, of images.

    Attributes:
        output_names (tuple[str]): 'logits', or 'feature_0' and so on.
    """

    predicts = False  # the outputs are logits or features

    def __init__(self,
                 backbone: nn.Module,
                 head: nn.Module | None = None,
                 neck: nn.Module | None = None,
                 num_outputs: int = 1):
        super().__init__()
        self.output_names = ('logits', ) if head is not None else tuple(
            f'feature_{i}' for i in range(num_outputs))
        self.backbone = backbone
        self.head = head
        self.neck = neck

    @property
    def is_classifier(self) -> bool:
        """bool: Whether the one output is logits."""
        return self.head is not None

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> [(N, num_classes)], or the feature maps."""
        feats = self.backbone(x)
        if self.neck is not None:
            feats = self.neck(feats)
        return list(feats) if self.head is None else [self.head(feats)]


@torch.no_grad()
def make_network(model: nn.Module, part: str, example: Tensor) -> nn.Module:
    """The part of a model that is exported, in eval mode.

    Args:
        model (nn.Module): A classifier, a detector, a segmentor, or any model
            with a backbone.
        part (str): 'model' or 'backbone'.
        example (Tensor): An input, (1, C, H, W).

    Returns:
        nn.Module: With ``output_names`` (tuple[str]) and ``predicts`` (bool):
        whether its outputs are the toolbox's predictions.

    Raises:
        UserError: If the model has no such part, or one that cannot be
            exported.
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
            f'a {type(model).__name__} is exported by its backbone: take '
            '--part backbone')
    return Network(model.backbone, model.head,
                   getattr(model, 'neck', None)).eval()


def describe(cfg: Config, model: nn.Module, meta: dict, example: Tensor,
             part: str, precision: str) -> dict[str, object]:
    """The metadata of the exported file: what a server needs to use it.

    Args:
        cfg (Config): The config of the model.
        model (nn.Module): The model.
        meta (dict): The ``meta`` of its checkpoint.
        example (Tensor): An input, (1, C, H, W).
        part (str): 'model' or 'backbone'.
        precision (str): 'fp32', 'bf16' or 'int8'.

    Returns:
        dict: ``labels`` (list[str], empty for a backbone), ``mean`` and
        ``std`` (lists of one number a channel, of pixels from 0 to 255),
        ``channel_order`` ('RGB', 'BGR' or 'gray'), ``input_size``
        ([height, width]), ``part``, ``precision``, ``version`` and
        ``comment``.
    """
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
        precision=precision,
        version=__version__,
        comment=MARK)
