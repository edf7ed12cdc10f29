# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Any network: add deep training, merge it, compare what came out."""
from ..layers.forms import (
    find_activations,
    find_layers,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from .compare import compare
from .merge import Report, reparameterize
from .retrofit import Replaced, add_deep_training, build_with_deep_training

__all__ = [
    'Replaced', 'Report', 'add_deep_training', 'build_with_deep_training',
    'compare', 'find_activations', 'find_layers', 'reparameterize', 'set_lam',
    'switch_to_deploy', 'switch_to_finetune'
]
