# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .forms import (
    find_activations,
    find_layers,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from .series_activation import SeriesActivation

__all__ = [
    'DeepTrainingActivation', 'DeepTrainingConv2d', 'SeriesActivation',
    'find_activations', 'find_layers', 'set_lam', 'switch_to_deploy',
    'switch_to_finetune'
]
