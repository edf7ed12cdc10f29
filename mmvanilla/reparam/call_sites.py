# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""One attribute for each place where a block calls a shared layer.

A Bottleneck of ResNet holds one ReLU and calls it three times, with feature
maps of different widths. :func:`split_call_sites` makes a subclass of the
block's class whose methods call ``relu_1``, ``relu_2`` and ``relu_3`` instead.
Each call then has its own module, and the forward pass counts no calls.
"""
import ast
import functools
import inspect
import types

from torch import nn


class CannotSplit(Exception):
    """The calls of a layer cannot be separated; the text says why."""


@functools.cache
def split_call_sites(cls: type, names: tuple[str, ...]) -> type:
    """Make a subclass of a block's class with one attribute for each call.

    Its instances are pickled and copied with ``cls`` and ``names``, from
    which this function makes the subclass again.

    Args:
        cls (type): The block's class, not one that was made here (see
            :func:`original_class`).
        names (tuple[str]): Attributes that hold the layers.

    Returns:
        type: The subclass. Its ``call_sites`` is a dict from each of
        ``names`` to its list of new attributes, which the caller must set on
        the block.

    Raises:
        CannotSplit: If the source of a method that uses the layers cannot be
            read, or uses them in another way than calling them.
    """
    sites = {name: [] for name in names}
    methods = {
        attribute: _rewritten(method, sites)
        for attribute, method in _methods(cls).items()
        if attribute != '__init__'
        and not set(names).isdisjoint(_names_in(method.__code__))
    }
    return type(cls)(
        cls.__name__, (cls, ), {
            **methods, '__module__': cls.__module__,
            '__qualname__': cls.__qualname__,
            '__doc__': cls.__doc__,
            '__reduce_ex__': _reduce,
            'split_from': (cls, names),
            'call_sites': sites
        })


def original_class(block: nn.Module) -> tuple[type, tuple[str, ...]]:
    """A block's class before the split, and the names that were split."""
    return getattr(type(block), 'split_from', (type(block), ()))


def _reduce(self, protocol: int) -> tuple:
    state = object.__reduce_ex__(self, protocol)[2:]
    return _new, type(self).split_from, *state


def _new(cls: type, names: tuple[str, ...]) -> nn.Module:
    cls = split_call_sites(cls, names)
    return cls.__new__(cls)


def _methods(cls: type) -> dict[str, types.FunctionType]:
    methods = {}
    for base in cls.__mro__[:cls.__mro__.index(nn.Module)]:
        for attribute, value in vars(base).items():
            methods.setdefault(attribute, value)
    return {
        attribute: value
        for attribute, value in methods.items()
        if isinstance(value, types.FunctionType)
    }


def _names_in(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*map(_names_in, _codes_in(code)))


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    return [c for c in code.co_consts if isinstance(c, types.CodeType)]


def _rewritten(method: types.FunctionType,
               sites: dict[str, list[str]]) -> types.FunctionType:
    """Compile a method again from its source file, with renamed calls."""
    where = f'{method.__qualname__}()'
    old = method.__code__
    try:
        tree = ast.parse(''.join(inspect.findsource(method)[0]))
    except (OSError, TypeError, SyntaxError) as e:
        raise CannotSplit(f'the source of {where} cannot be read') from e
    if _compile(tree, old) != old:
        raise CannotSplit(f'the source of {where} is not the code that runs')
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == old.co_name and (
                old.co_firstlineno
                == min(n.lineno for n in [node, *node.decorator_list])):
            _Rewriter(old.co_varnames[0], sites, where).generic_visit(node)
    new = _compile(tree, old)
    cells = dict(zip(old.co_freevars, method.__closure__ or ()))
    function = types.FunctionType(
        new, method.__globals__, method.__name__, method.__defaults__,
        tuple(cells[name] for name in new.co_freevars))
    functools.update_wrapper(function, method)
    del function.__wrapped__
    function.__kwdefaults__ = method.__kwdefaults__
    return function


def _compile(tree: ast.Module, like: types.CodeType) -> types.CodeType | None:
    """Compile a file; return the function of the same name and line."""
    codes = [compile(tree, like.co_filename, 'exec', dont_inherit=True)]
    for code in codes:
        if (code.co_name, code.co_firstlineno) == (like.co_name,
                                                   like.co_firstlineno):
            return code
        codes += _codes_in(code)
    return None


class _Rewriter(ast.NodeTransformer):
    """Rename each call of ``self.NAME`` in a method to its own name."""

    def __init__(self, self_name: str, sites: dict[str, list[str]],
                 where: str) -> None:
        self.self_name = self_name
        self.sites = sites
        self.where = where

    def _is_layer(self, node: ast.AST) -> bool:
        return (isinstance(node, ast.Attribute) and node.attr in self.sites
                and isinstance(node.value, ast.Name)
                and node.value.id == self.self_name)

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: D102, N802
        if self._is_layer(node.func):
            sites = self.sites[node.func.attr]
            sites.append(f'{node.func.attr}_{len(sites) + 1}')
            node.func.attr = sites[-1]
            node.args = [self.visit(arg) for arg in node.args]
            node.keywords = [self.visit(arg) for arg in node.keywords]
            return node
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:  # noqa: D102, N802
        if self._is_layer(node.left) and isinstance(
                node.ops[0], (ast.Is, ast.IsNot)):
            return node  # the old attribute stays, so the result does too
        return self.generic_visit(node)

    def visit_Attribute(self, node):  # noqa: D102, N802
        if self._is_layer(node):
            raise CannotSplit(
                f'{self.where} uses it in another way than calling it')
        return self.generic_visit(node)
