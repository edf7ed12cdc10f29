# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .label_smooth_bce_loss import LabelSmoothBCELoss

__all__ = ['LabelSmoothBCELoss']
