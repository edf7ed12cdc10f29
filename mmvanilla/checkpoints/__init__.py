# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .convert import convert
from .hub import (
    PUBLISHED,
    SCHEME,
    URL,
    load_checkpoint,
    load_from_vanillanet,
    local_path,
)
from .load import check_fit, load_state_dict, load_weights
from .official import describe, from_authors, to_authors
from .safe_load import allow_mmengine_checkpoints, read_checkpoint

__all__ = [
    'PUBLISHED', 'SCHEME', 'URL', 'allow_mmengine_checkpoints', 'check_fit',
    'convert', 'describe', 'from_authors', 'load_checkpoint',
    'load_from_vanillanet', 'load_state_dict', 'load_weights', 'local_path',
    'read_checkpoint', 'to_authors'
]
