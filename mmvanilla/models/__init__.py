# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .losses import LabelSmoothBCELoss
from .reparameterize import find_activations, set_lam, switch_to_deploy
from .series_activation import SeriesActivation
from .vanillanet import VanillaNet
from .vanillanet_head import VanillaNetHead

__all__ = [
    'DeepTrainingActivation', 'DeepTrainingConv2d', 'LabelSmoothBCELoss',
    'SeriesActivation', 'VanillaNet', 'VanillaNetHead', 'find_activations',
    'set_lam', 'switch_to_deploy'
]
