# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .convert import convert
from .hub import PUBLISHED, SCHEME, URL
from .official import describe, from_authors, to_authors
from .read import (
    leave_out_configs,
    load_checkpoint,
    load_state_dict,
    load_weights,
    read_checkpoint,
    safe_reading,
)

__all__ = [
    'PUBLISHED', 'SCHEME', 'URL', 'convert', 'describe', 'from_authors',
    'leave_out_configs', 'load_checkpoint', 'load_state_dict', 'load_weights',
    'read_checkpoint', 'safe_reading', 'to_authors'
]
