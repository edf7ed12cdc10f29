# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .forms import find_activations, set_lam, switch_to_deploy
from .series_activation import SeriesActivation
from .series_activation_list import SeriesActivationList

__all__ = [
    'DeepTrainingActivation', 'DeepTrainingConv2d', 'SeriesActivation',
    'SeriesActivationList', 'find_activations', 'set_lam', 'switch_to_deploy'
]
