# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .backbones.vanillanet import VanillaNet
from .heads.vanillanet_head import VanillaNetHead
from .losses.label_smooth_bce_loss import LabelSmoothBCELoss

__all__ = ['LabelSmoothBCELoss', 'VanillaNet', 'VanillaNetHead']
