# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .convert import convert
from .hub import PUBLISHED, SCHEME, URL
from .load import load_state_dict, load_weights
from .loaders import load_checkpoint, local_path
from .official import describe, from_authors, to_authors
from .safe_load import read_checkpoint
from .validate import check_state_dict

__all__ = [
    'PUBLISHED', 'SCHEME', 'URL', 'check_state_dict', 'convert', 'describe',
    'from_authors', 'load_checkpoint', 'load_state_dict', 'load_weights',
    'local_path', 'read_checkpoint', 'to_authors'
]
