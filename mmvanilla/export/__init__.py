# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .backends import read_metadata
from .export import ExportReport, export
from .inference import optimize_for_inference

__all__ = [
    'ExportReport', 'export', 'optimize_for_inference', 'read_metadata'
]
