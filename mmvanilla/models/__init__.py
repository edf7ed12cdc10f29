# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .backbones import VanillaNet
from .heads import VanillaNetHead
from .losses import LabelSmoothBCELoss

__all__ = ['LabelSmoothBCELoss', 'VanillaNet', 'VanillaNetHead']
