# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .hooks import DeepTrainingHook, ReparameterizeHook
from .optimizers import VanillaNetLayerDecayConstructor

__all__ = [
    'DeepTrainingHook', 'ReparameterizeHook',
    'VanillaNetLayerDecayConstructor'
]
