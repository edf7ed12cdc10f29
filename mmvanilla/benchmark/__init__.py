# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .measure import benchmark
from .report import Benchmark, Measurement

__all__ = ['Benchmark', 'Measurement', 'benchmark']
