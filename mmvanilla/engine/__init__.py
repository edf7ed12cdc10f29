# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .hooks import (
    AtomicCheckpointHook,
    DataLoadingHook,
    DeepTrainingHook,
    ReparameterizeHook,
)
from .optimizers import VanillaNetLayerDecayConstructor

__all__ = [
    'AtomicCheckpointHook', 'DataLoadingHook', 'DeepTrainingHook',
    'ReparameterizeHook', 'VanillaNetLayerDecayConstructor'
]
