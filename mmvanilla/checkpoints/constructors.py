# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checked functions that torch's safe reader calls for mmengine's names."""
import math
from argparse import Namespace
from pathlib import PurePath
from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer

DTYPES = 'b1 i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8'.split()


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise UnpicklingError(what)


class _DType:
    """A plain dtype. As for any object, numpy reads its ``dtype``."""

    def __init__(self, kind, align=False, copy=True) -> None:
        _need(type(kind) is str and kind in DTYPES,
              f'Unsupported global: GLOBAL numpy.dtype({kind!r:.20})')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state) -> None:
        _need(state[1] in '<|' and state[2:] == (None, None, None, -1, -1, 0),
              'a dtype is not a plain one')


class _Array(np.ndarray):
    """An array of a plain dtype, which is saved as ``numpy.ndarray``."""

    def __new__(cls):
        return super().__new__(cls, 0, 'u1')

    def __setstate__(self, state) -> None:
        _, shape, kind, fortran, data = state
        _need(type(kind) is _DType and type(shape) is tuple
              and all(type(n) is int and n >= 0 for n in shape)
              and type(fortran) is bool and type(data) is bytes
              and len(data) == math.prod(shape) * kind.dtype.itemsize,
              'the data of an array do not fit its shape')
        super().__setstate__((1, shape, kind.dtype, fortran, data))

    def __reduce_ex__(self, protocol):
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _array(kind, shape, typecode) -> _Array:
    _need(kind is _Array, 'an array is of another class')
    return _Array()


def _scalar(kind, data) -> np.generic:
    _need(type(kind) is _DType and type(data) is bytes
          and len(data) == kind.dtype.itemsize, 'a number has another size')
    return np.frombuffer(data, kind.dtype)[0]


class _History(HistoryBuffer):
    """Becomes a ``HistoryBuffer`` when its state is set."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state) -> None:
        logs, counts = state['_log_history'], state['_count_history']
        length = state['max_length']
        _need(type(logs) is type(counts) is _Array and logs.ndim == 1
              and logs.shape == counts.shape and type(length) is int
              and length > 0, 'a HistoryBuffer holds no history')
        self.__class__ = HistoryBuffer
        self.__init__(logs, counts, length)


def _statistic(owner, name):
    """Replace ``getattr``, by which a HistoryBuffer names its statistics."""
    _need(owner is _History and name in ('min', 'max', 'current', 'mean'),
          f'Unsupported global: GLOBAL getattr(...,{name!r:.40})')
    return getattr(HistoryBuffer, name)


ALLOWED = [
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_statistic, 'builtins.getattr'),
    (dict, 'mmengine.config.config.ConfigDict'),
    (_Array, 'numpy.ndarray'),
    (_DType, 'numpy.dtype'),
    *[(function, f'{core}.multiarray.{name}')
      for core in ('numpy.core', 'numpy._core')
      for function, name in [(_array, '_reconstruct'), (_scalar, 'scalar')]],
    (lambda: b'', 'builtins.bytes'),
    (slice, 'builtins.slice'),
    (Namespace, 'argparse.Namespace'),
    (PurePath, 'pathlib.PosixPath'),
    (PurePath, 'pathlib.WindowsPath'),
]
NAMES = [name for _, name in ALLOWED]
