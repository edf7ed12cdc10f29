# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .hooks import AtomicCheckpointHook, DeepTrainingHook, ReparameterizeHook
from .optimizers import VanillaNetLayerDecayConstructor

__all__ = [
    'AtomicCheckpointHook', 'DeepTrainingHook', 'ReparameterizeHook',
    'VanillaNetLayerDecayConstructor'
]
