# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .add_deep_training import add_deep_training
from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .losses import LabelSmoothBCELoss
from .reparameterize import find_activations, set_lam, switch_to_deploy
from .series_activation import SeriesActivation
from .series_activation_list import SeriesActivationList
from .vanillanet import VanillaNet
from .vanillanet_head import VanillaNetHead

__all__ = [
    'DeepTrainingActivation', 'DeepTrainingConv2d', 'LabelSmoothBCELoss',
    'SeriesActivation', 'SeriesActivationList', 'VanillaNet',
    'VanillaNetHead', 'add_deep_training', 'find_activations', 'set_lam',
    'switch_to_deploy'
]
