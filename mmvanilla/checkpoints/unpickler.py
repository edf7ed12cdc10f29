# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A pickle reader that builds only objects that checkpoints need.

Python's unpicklers import any name and call it. torch's ``weights_only``
reader calls every function that a package registered with it, without a check
of the arguments. This one knows only the names in ``allowed.py``.
"""
import pickletools
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from .allowed import (
    GLOBALS,
    Global,
    RefusedError,
    checked_key,
    is_count,
    need,
    set_state,
)

# Limits of the levels of nesting, of the number of objects and characters
# (shared objects count each time), and of the bits of an integer. Real
# checkpoints are far below them.
MAX_DEPTH = 64
MAX_SIZE = 1 << 28
MAX_BITS = 512


class Unpickler:
    """Read one pickle.

    Args:
        stream (BytesIO): At the start of the pickle; afterwards at its end.
        load_storage (Callable): Takes the key, the dtype and the number of
            elements of a tensor's storage and returns the :class:`Storage`.
    """

    def __init__(self, stream: BytesIO, load_storage: Callable) -> None:
        self.stream = stream
        self.load_storage = load_storage
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read the object, which :func:`check_plain` must check afterwards.

        Raises:
            RefusedError: If a name or opcode is not allowed.
            Exception: Of any class, if the pickle is not valid.
        """
        for opcode, arg, _ in pickletools.genops(self.stream):
            name = opcode.name
            if name == 'STOP':
                value, = self.stack
                need(not self.marks, 'a pickle ends too early')
                return value
            if name in self._VALUES:
                self.stack.append(self._VALUES[name]())
            elif name in self._LITERALS:
                need(type(arg) is not int or arg.bit_length() <= MAX_BITS,
                     'an integer is too long')
                self.stack.append(arg)
            elif name in self._ACTIONS:
                self._ACTIONS[name](self, arg)
            else:
                raise RefusedError(f'the pickle opcode {name}')

    _LITERALS = frozenset(
        'INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING '
        'BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE '
        'BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8'.split())
    _VALUES = dict(
        NONE=lambda: None,
        NEWTRUE=lambda: True,
        NEWFALSE=lambda: False,
        EMPTY_LIST=list,
        EMPTY_TUPLE=tuple,
        EMPTY_DICT=dict)

    def _mark(self, _) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _make(self, build: Callable) -> None:
        items = self._pop_mark()
        self.stack.append(build(items))

    def _tuple_of(self, count: int) -> None:
        need(len(self.stack) >= count, 'a tuple is too short')
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _extend(self, items: list) -> None:
        need(type(self.stack[-1]) is list, 'items are appended to no list')
        self.stack[-1].extend(items)

    def _update(self, items: list) -> None:
        need(type(self.stack[-1]) in (dict, OrderedDict)
             and len(items) % 2 == 0, 'items are set in no dict')
        self.stack[-1].update(zip(map(checked_key, items[::2]), items[1::2]))

    def _append(self, _) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _set_item(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _global(self, name: str) -> None:
        name = name.replace(' ', '.')
        if name not in GLOBALS:
            raise RefusedError(name)
        self.stack.append(GLOBALS[name])

    def _stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        need(type(name) is type(module) is str, 'a name is not a string')
        self._global(f'{module}.{name}')

    def _call(self, _) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        need(isinstance(target, Global) and type(args) is tuple,
             'an object is called that is not a function')
        if target.call is None:
            raise RefusedError(target.name)
        # Only BUILD sets the content of these two.
        need(not args or target.call not in (HistoryBuffer, Namespace),
             'arguments where there are none')
        self.stack.append(target.call(*args))

    def _build(self, _) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)

    def _persistent(self, _) -> None:
        tag, kind, key, _, numel, *view = self.stack.pop()
        need(tag == 'storage' and isinstance(kind, Global) and kind.dtype
             and type(key) is str and is_count(numel)
             and view in ([], [None]), 'a storage has no type or size')
        self.stack.append(self.load_storage(key, kind.dtype, numel))

    _ACTIONS = dict(
        PROTO=lambda self, _: None,
        FRAME=lambda self, _: None,
        MARK=_mark,
        POP=lambda self, _: self.stack.pop(),
        POP_MARK=lambda self, _: self._pop_mark(),
        LIST=lambda self, _: self._make(list),
        TUPLE=lambda self, _: self._make(tuple),
        TUPLE1=lambda self, _: self._tuple_of(1),
        TUPLE2=lambda self, _: self._tuple_of(2),
        TUPLE3=lambda self, _: self._tuple_of(3),
        APPEND=_append,
        APPENDS=lambda self, _: self._extend(self._pop_mark()),
        SETITEM=_set_item,
        SETITEMS=lambda self, _: self._update(self._pop_mark()),
        PUT=lambda self, index: self._put(index),
        BINPUT=lambda self, index: self._put(index),
        LONG_BINPUT=lambda self, index: self._put(index),
        MEMOIZE=lambda self, _: self._put(len(self.memo)),
        GET=lambda self, index: self._get(index),
        BINGET=lambda self, index: self._get(index),
        LONG_BINGET=lambda self, index: self._get(index),
        GLOBAL=_global,
        STACK_GLOBAL=_stack_global,
        REDUCE=_call,
        NEWOBJ=_call,
        BUILD=_build,
        BINPERSID=_persistent)


def check_plain(value: Any, classes: tuple, what: str) -> None:
    """Refuse content of other classes, nested too deep or in itself.

    Args:
        value (Any): The content.
        classes (tuple): Allowed classes beside None, strings, bytes, numbers,
            numeric arrays, lists, tuples and dicts.
        what (str): Name of the content, for the error.

    Raises:
        ValueError: If an object is of another class, or the limits of
            nesting and size are exceeded.
    """
    leaves = (type(None), str, bytes, bool, int, float, np.generic, np.ndarray,
              *classes)
    known: dict[int, tuple] = {}

    def measure(node, depth) -> tuple[int, int]:
        if isinstance(node, (list, tuple, dict)):
            children = node.values() if isinstance(node, dict) else node
        elif type(node) is Namespace and Namespace in classes:
            children = vars(node).values()
        else:
            need(isinstance(node, leaves),
                 f'{what} holds a {type(node).__name__}')
            return 0, 1 + len(node) if isinstance(node, (str, bytes)) else 1
        height, size = known.get(id(node), (0, 0))
        if not size:
            need(depth < MAX_DEPTH, f'{what} is nested too deep')
            known[id(node)] = (MAX_DEPTH, 1)  # while it is open
            size = 1
            for child in children:
                below, more = measure(child, depth + 1)
                height, size = max(height, below + 1), size + more
            known[id(node)] = (height, size)
        need(depth + height <= MAX_DEPTH and size < MAX_SIZE,
             f'{what} is nested too deep or in itself')
        return height, size

    measure(value, 0)
