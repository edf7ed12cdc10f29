# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .vanillanet_head import VanillaNetHead

__all__ = ['VanillaNetHead']
