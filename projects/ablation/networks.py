# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Networks for the experiments; importing this module registers them."""
from collections.abc import Sequence

import torch.nn.functional as F
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmvanilla.models.backbones.vanillanet import (
    INIT_CFG,
    VanillaNet,
    VanillaStage,
)


@MODELS.register_module()
class PlainNet(BaseBackbone):
    """VanillaNet without deep training and series activations.

    Each stage is a convolution, a norm, a pooling and a ReLU.
    ``WithDeepTraining`` adds either technique, or both.

    Args:
        dims (Sequence[int]): Channels of the stem, then of each stage.
        strides (Sequence[int]): 1 or 2 for each stage.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict], optional): Defaults to VanillaNet's.
    """

    def __init__(self,
                 dims: Sequence[int],
                 strides: Sequence[int],
                 in_channels: int = 3,
                 init_cfg: dict | Sequence[dict] | None = INIT_CFG) -> None:
        if isinstance(init_cfg, tuple):
            init_cfg = list(init_cfg)
        super().__init__(init_cfg=init_cfg)

        def make_stage(in_channels, out_channels, kernel_size, stride, pool):
            layers = [
                nn.Conv2d(in_channels, out_channels, kernel_size, stride),
                nn.BatchNorm2d(out_channels, eps=1e-6)
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
            return nn.Sequential(*layers, nn.ReLU())

        self.stem = make_stage(in_channels, dims[0], 4, 4, False)
        self.stages = nn.Sequential(*[
            make_stage(dims[i], dims[i + 1], 1, 1, stride == 2)
            for i, stride in enumerate(strides)
        ])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """(N, in_channels, H, W) -> the last stage's map, in a tuple."""
        return (self.stages(self.stem(x)), )


@MODELS.register_module()
class NarrowAlexNet(BaseBackbone):
    """AlexNet's layers at any width, for images of 64 x 64 and more.

    Krizhevsky, Sutskever and Hinton (NeurIPS 2012), without the split over
    two GPUs and the response normalization. Its two hidden fully connected
    layers come after average pooling, as 1x1 convolutions.

    Args:
        width (int): Channels of the first convolution; the original has 96.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list[dict], optional): Defaults to He's normal
            initialization of the convolutions.
    """

    def __init__(self,
                 width: int,
                 in_channels: int = 3,
                 init_cfg: dict | Sequence[dict] | None = dict(
                     type='Kaiming', layer=['Conv2d'])) -> None:
        super().__init__(init_cfg=init_cfg)
        # 256, 384 and 4096 in the original, where width is 96.
        wide, wider, hidden = (
            round(width * ratio / 3) for ratio in (8, 12, 128))
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 11, stride=4, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, 2), nn.Conv2d(width, wide, 5, padding=2),
            nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(wide, wider, 3, padding=1), nn.ReLU(),
            nn.Conv2d(wider, wider, 3, padding=1), nn.ReLU(),
            nn.Conv2d(wider, wide, 3, padding=1), nn.ReLU())
        self.hidden = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, hidden, 1), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """(N, in_channels, H, W) -> (N, 128 / 3 width, 1, 1)."""
        return (self.hidden(self.features(x)), )


class ShortcutStage(VanillaStage):
    """A stage of VanillaNet with a shortcut around its convolution.

    The shortcut has no weights (He et al., arXiv 1512.03385, option A): it is
    pooled as the stage is, and padded with zeros in the added channels.

    Args:
        stage (VanillaStage): The stage.
        place (str): Whether the shortcut is added 'before' or 'after' the
            activation.
    """

    def __init__(self, stage: VanillaStage, place: str) -> None:
        super().__init__(stage.conv, stage.act, stage.pool)
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        shortcut, x = x, self.conv(x)
        if self.pool is not None:
            shortcut, x = self.pool(shortcut), self.pool(x)
        new = x.shape[1] - shortcut.shape[1]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, new))
        if self.place == 'before':
            return self.act(x + shortcut)
        return self.act(x) + shortcut


@MODELS.register_module()
class ShortcutVanillaNet(VanillaNet):
    """VanillaNet with a shortcut around each stage, for comparison.

    Args:
        shortcut (str): 'before' or 'after' the activation.
        **kwargs: Arguments of :class:`VanillaNet`.

    Raises:
        ValueError: If ``shortcut`` is neither, or a stage has fewer channels
            than the one before it.
    """

    def __init__(self, shortcut: str, **kwargs) -> None:
        super().__init__(**kwargs)
        if shortcut not in ('before', 'after'):
            raise ValueError("shortcut must be 'before' or 'after', but got "
                             f'{shortcut!r}')
        for i, stage in enumerate(self.stages):
            conv = stage.conv
            if conv.out_channels < conv.in_channels:
                raise ValueError(
                    f'stage {i} has fewer channels than the one before it, '
                    'which a shortcut without weights cannot leave out')
            self.stages[i] = ShortcutStage(stage, shortcut)
