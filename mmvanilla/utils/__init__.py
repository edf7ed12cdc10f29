# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Errors, files, configs and text, used by all other subpackages."""
from .errors import UserError

__all__ = ['UserError', 'register_all_modules']


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register mmpretrain's modules, as ``mmengine.hub.get_model`` asks."""
    from mmpretrain.utils import register_all_modules
    register_all_modules(init_default_scope)
