# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .measure import benchmark

__all__ = ['benchmark']
