# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .export import ExportReport, export
from .exported import read_metadata
from .optimize import optimize_for_inference

__all__ = [
    'ExportReport', 'export', 'optimize_for_inference', 'read_metadata'
]
