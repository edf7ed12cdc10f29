# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .vanillanet import VanillaNet

__all__ = ['VanillaNet']
