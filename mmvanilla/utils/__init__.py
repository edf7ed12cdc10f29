# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Errors, files, tables and configs, used by all other subpackages."""
import time

from .errors import UserError

__all__ = ['UserError', 'register_all_modules']


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register the modules of mmvanilla and mmpretrain.

    ``mmengine.hub.get_model('mmvanilla::...')`` calls it.

    Args:
        init_default_scope (bool): Whether to make ``mmpretrain`` the default
            scope. Defaults to True.
    """
    from mmengine.registry import DefaultScope
    from mmpretrain.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    if init_default_scope:
        # mmengine uses the newest instance.
        name = f'mmvanilla-{time.time_ns()}'
        DefaultScope.get_instance(name, scope_name='mmpretrain')
