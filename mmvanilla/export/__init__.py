# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .export import export
from .inference import optimize_for_inference

__all__ = ['export', 'optimize_for_inference']
