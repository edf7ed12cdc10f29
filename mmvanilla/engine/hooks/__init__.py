# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .deep_training_hook import DeepTrainingHook
from .reparameterize_hook import ReparameterizeHook

__all__ = ['AtomicCheckpointHook', 'DeepTrainingHook', 'ReparameterizeHook']
