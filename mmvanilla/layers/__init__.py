# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from mmpretrain.registry import MODELS

from .deep_training import DeepTrainingConv2d
from .deep_training_activation import DeepTrainingActivation
from .forms import (
    find_activations,
    find_layers,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from .series_activation import SeriesActivation

# Under a default scope of mmpretrain, "mmpretrain.SeriesActivation" is looked
# up in its registry alone, not in the root registry.
for layer in (DeepTrainingActivation, DeepTrainingConv2d, SeriesActivation):
    MODELS.register_module(module=layer)

__all__ = [
    'DeepTrainingActivation', 'DeepTrainingConv2d', 'SeriesActivation',
    'find_activations', 'find_layers', 'set_lam', 'switch_to_deploy',
    'switch_to_finetune'
]
