# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Networks of the experiments; importing this module registers them."""
from collections.abc import Sequence

import torch.nn.functional as F
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.resnet import Bottleneck
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

    Each stage is a convolution, a norm, a pooling and a ReLU; ``dims`` and
    ``strides`` are those of a VanillaNet's ``arch``.
    """

    def __init__(self, dims: Sequence[int], strides: Sequence[int],
                 in_channels: int = 3) -> None:
        super().__init__(init_cfg=list(INIT_CFG))

        def make_stage(in_channels, out_channels, size, pool):
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, size, size),
                nn.BatchNorm2d(out_channels, eps=1e-6),
                *[nn.MaxPool2d(2)] * pool, nn.ReLU())

        self.stem = make_stage(in_channels, dims[0], 4, 0)
        self.stages = nn.Sequential(*[
            make_stage(dims[i], dims[i + 1], 1, stride - 1)
            for i, stride in enumerate(strides)
        ])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.stages(self.stem(x)), )


@MODELS.register_module()
class NarrowAlexNet(BaseBackbone):
    """AlexNet's layers at any width, for images of 64 x 64 and more.

    Krizhevsky, Sutskever and Hinton (NeurIPS 2012), without the response
    normalization. Its hidden fully connected layers come after average
    pooling, as 1x1 convolutions. ``width`` is that of the first convolution.
    """

    def __init__(self, width: int, in_channels: int = 3) -> None:
        super().__init__(init_cfg=dict(type='Kaiming', layer=['Conv2d']))
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
        return (self.hidden(self.features(x)), )


class ThreeReLUs(Bottleneck):
    """A block of ResNet-50 with a ReLU for each of three places.

    ``WithDeepTraining`` cannot replace one that is called three times.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.relu2(self.norm2(self.conv2(out)))
        out = self.drop_path(self.norm3(self.conv3(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + shortcut)


@MODELS.register_module()
class ThreeReLUResNet(ResNet):
    """ResNet-50 with a ReLU for each place."""

    arch_settings = {50: (ThreeReLUs, (3, 4, 6, 3))}


class ShortcutStage(VanillaStage):
    """A stage of VanillaNet with a shortcut around its convolution.

    The shortcut has no weights (He et al., arXiv 1512.03385, option A): it is
    pooled as the stage is, and padded with zeros in the added channels. It
    ends 'before' or 'after' the activation.
    """

    def __init__(self, stage: VanillaStage, place: str) -> None:
        super().__init__(stage.conv, stage.act, stage.pool)
        self.before = dict(before=True, after=False)[place]

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.conv(x)
        if self.pool is not None:
            shortcut, x = self.pool(shortcut), self.pool(x)
        new = x.shape[1] - shortcut.shape[1]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, new))
        if self.before:
            return self.act(x + shortcut)
        return self.act(x) + shortcut


@MODELS.register_module()
class ShortcutVanillaNet(VanillaNet):
    """VanillaNet with a shortcut 'before' or 'after' each activation."""

    def __init__(self, shortcut: str, **kwargs) -> None:
        super().__init__(**kwargs)
        for i, stage in enumerate(self.stages):
            self.stages[i] = ShortcutStage(stage, shortcut)
