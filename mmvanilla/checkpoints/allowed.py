# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The names that a checkpoint's pickle may use, and their functions.

The table is closed: names that other packages register with torch or pickle
are not in it. Each function checks its arguments.
"""
import math
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

STORAGES = dict(
    FloatStorage=torch.float32,
    DoubleStorage=torch.float64,
    HalfStorage=torch.float16,
    BFloat16Storage=torch.bfloat16,
    LongStorage=torch.int64,
    IntStorage=torch.int32,
    ShortStorage=torch.int16,
    CharStorage=torch.int8,
    ByteStorage=torch.uint8,
    BoolStorage=torch.bool)
DTYPES = [
    'b1', 'i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f2', 'f4', 'f8'
]
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
STATISTICS = ('min', 'max', 'current', 'mean')


class RefusedError(Exception):
    """A pickle uses a name or an opcode that no checkpoint needs."""


class Global:
    """A name in a pickle: the function that it calls, or a storage's dtype.

    Args:
        name (str): Module and name, with dots.
        call (Callable, optional): Checks its arguments and builds the
            object. Defaults to None: the name must not be called.
        dtype (torch.dtype, optional): For the class of a storage, its dtype.
            Defaults to None.
    """

    def __init__(self, name: str, call: Callable | None = None,
                 dtype: torch.dtype | None = None) -> None:
        self.name = name
        self.call = call
        self.dtype = dtype


class Storage:
    """The elements of a tensor: their dtype, number and bytes."""

    def __init__(self, dtype: torch.dtype, numel: int,
                 data: torch.UntypedStorage) -> None:
        self.dtype = dtype
        self.numel = numel
        self.data = data


def need(condition: bool, what: str) -> None:
    """Raise ValueError with the text ``what`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(what)


def is_count(value) -> bool:
    """Whether a value is an integer from 0 to 2**62 - 1."""
    return type(value) is int and 0 <= value < 1 << 62


def _is_shape(value) -> bool:
    return (isinstance(value, tuple) and len(value) <= 32
            and all(map(is_count, value))
            and math.prod(filter(None, value)) < 1 << 62)


def _tensor(storage, offset, size, stride, *_) -> torch.Tensor:
    """Build a tensor whose elements are all inside its storage."""
    need(isinstance(storage, Storage), 'a tensor has no storage')
    need(is_count(offset) and _is_shape(size) and isinstance(stride, tuple)
         and all(map(is_count, stride)) and len(size) == len(stride),
         'a tensor has no valid shape')
    # The elements of expanded tensors (stride 0) are counted once. No other
    # elements may overlap.
    own = math.prod(n for n, step in zip(size, stride) if step or not n)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    need(not own or (last < storage.numel and own <= storage.numel),
         'a tensor is larger than its storage')
    need(own > 0 or offset <= storage.numel, 'a tensor starts after its '
         'storage')
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage.data, offset, size, stride)


def _tensor_v2(storage, offset, size, stride, requires_grad, hooks,
               metadata=None) -> torch.Tensor:
    need(not metadata, 'a tensor has attributes')
    return _tensor(storage, offset, size, stride)


def _parameter(data, requires_grad, hooks) -> torch.Tensor:
    need(isinstance(data, torch.Tensor), 'a parameter is not a tensor')
    return data


def _dtype(kind, align=False, copy=True) -> np.dtype:
    if kind not in DTYPES:
        raise RefusedError(f'numpy.dtype({kind!r:.20})')
    return np.dtype(kind)


def _empty_array(kind, shape, typecode) -> np.ndarray:
    need(isinstance(kind, Global) and kind.name == 'numpy.ndarray',
         'an array is of another class')
    return np.empty(0, 'u1')


def _number(dtype, data) -> np.generic:
    need(isinstance(dtype, np.dtype) and type(data) is bytes
         and len(data) == dtype.itemsize, 'a number has another size')
    return np.frombuffer(data, dtype)[0]


def _bytes_of(text='', encoding='latin1') -> bytes:
    need(type(text) is str and encoding == 'latin1', 'bytes are not in latin1')
    return text.encode('latin1')


def _ordered_dict(items=()) -> OrderedDict:
    need(type(items) in (list, tuple), 'an OrderedDict is not made of pairs')
    return OrderedDict((checked_key(k), v) for k, v in items)


def _dict(items=None) -> dict:
    need(type(items) in (dict, OrderedDict, type(None)),
         'a dict is made of another object')
    return dict(items or {})


def _default_dict(factory=None, items=None) -> dict:
    return _dict(items)


def _counter(items) -> Counter:
    need(type(items) is dict and all(type(v) is int for v in items.values()),
         'a Counter does not hold counts')
    return Counter(items)


def _size(items=()) -> tuple:
    need(type(items) is tuple, 'a torch.Size is not made of a tuple')
    return items


def _statistic(owner, name) -> Global:
    """Replace ``getattr``, with which HistoryBuffers name statistics."""
    if (isinstance(owner, Global) and owner.name == HISTORY
            and name in STATISTICS):
        return GLOBALS[f'{HISTORY}.{name}']
    raise RefusedError(f'getattr(..., {name!r:.40})')


def checked_key(key):
    """Return a dict's key if it is a string or an integer.

    Raises:
        ValueError: If it is not.
    """
    # Hashing a deeply nested tuple overflows the stack.
    need(type(key) in (str, int), 'a key is neither a string nor an integer')
    return key


_FUNCTIONS = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor_v2,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.Size': _size,
    'collections.OrderedDict': _ordered_dict,
    'collections.defaultdict': _default_dict,
    'collections.Counter': _counter,
    'mmengine.config.config.ConfigDict': _dict,
    HISTORY: HistoryBuffer,
    **{f'{HISTORY}.{name}': None for name in STATISTICS},
    'argparse.Namespace': Namespace,
    'numpy.ndarray': None,
    'numpy.dtype': _dtype,
    '_codecs.encode': _bytes_of,
    **{f'{core}.multiarray.{name}': function
       for core in ('numpy.core', 'numpy._core')
       for name, function in [('_reconstruct', _empty_array),
                              ('scalar', _number)]},
    # Python 2's name of the module, which protocol 2 keeps.
    **{f'{module}.{name}': function
       for module in ('builtins', '__builtin__')
       for name, function in [('getattr', _statistic), ('bytes', _bytes_of),
                              ('dict', _dict), ('list', None), ('int', None),
                              ('float', None)]},
}  # yapf: disable
GLOBALS = {name: Global(name, call) for name, call in _FUNCTIONS.items()}
GLOBALS.update({
    f'torch.{name}': Global(f'torch.{name}', dtype=dtype)
    for name, dtype in STORAGES.items()
})


def set_state(target, state) -> None:
    """Set an object's state, as the opcode BUILD does.

    Raises:
        RefusedError: If objects of its class have no state here.
        ValueError: If the state is not valid.
    """
    if type(target) is np.ndarray:
        _, shape, dtype, fortran, data = state
        need(_is_shape(shape) and isinstance(dtype, np.dtype)
             and type(fortran) is bool and type(data) is bytes
             and len(data) == math.prod(shape) * dtype.itemsize,
             'the data of an array does not fit its shape')
        target.__setstate__((1, shape, dtype, fortran, data))
    elif isinstance(target, np.dtype):
        need(type(state) is tuple and state[1:] in (
            ('<', None, None, None, -1, -1, 0),
            ('|', None, None, None, -1, -1, 0)), 'a dtype has fields')
    elif type(target) is HistoryBuffer:
        logs, counts = state['_log_history'], state['_count_history']
        length = state['max_length']
        need(type(logs) is type(counts) is np.ndarray and logs.ndim == 1
             and logs.shape == counts.shape and is_count(length)
             and length > 0, 'a HistoryBuffer holds no history')
        target.__init__(logs, counts, length)
    elif type(target) is Namespace:
        need(type(state) is dict and all(type(k) is str for k in state),
             'a Namespace has no names')
        vars(target).update(state)
    elif type(target) is OrderedDict and list(state) == ['_metadata']:
        # Versions of the modules in a state dict.
        target._metadata = OrderedDict(
            (key, dict(version=value['version']))
            for key, value in state['_metadata'].items()
            if type(key) is str and type(value) is dict
            and type(value.get('version')) is int)
    else:
        raise RefusedError(f'{type(target).__name__}.__setstate__')
