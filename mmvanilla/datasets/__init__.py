# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .digits import DigitsDataset

__all__ = ['DigitsDataset']
