# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .layer_decay import VanillaNetLayerDecayConstructor

__all__ = ['VanillaNetLayerDecayConstructor']
