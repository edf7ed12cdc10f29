# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .export import export

__all__ = ['export']
