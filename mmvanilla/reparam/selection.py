# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Choosing layers of a network by pattern, class or predicate."""
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..layers import (
    DeepTrainingActivation,
    DeepTrainingConv2d,
    SeriesActivation,
)

Selector = (
    str | type | Callable[[str, nn.Module], bool] | Sequence | None)

# Without gates, such as Sigmoid, whose outputs scale other feature maps.
ACTIVATIONS = ('ReLU', 'ReLU6', 'LeakyReLU', 'PReLU', 'ELU', 'CELU', 'SELU',
               'GELU', 'SiLU', 'Swish', 'Mish', 'Hardswish', 'HardSwish',
               'HSwish', 'Softplus', 'Tanh')
OURS = (DeepTrainingConv2d, SeriesActivation, DeepTrainingActivation)


def is_conv(module: nn.Module) -> bool:
    """Whether a module is a convolution of any kind."""
    return isinstance(module, _ConvNd)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation that is not a gate."""
    return type(module).__name__ in ACTIVATIONS


def choose(model: nn.Module, selector: Selector, argument: str,
            is_kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Choose layers of a model.

    Args:
        model (nn.Module): The network.
        selector (Selector): As in :func:`add_deep_training`.
        argument (str): Name of the selector, for the error.
        is_kind (Callable): Whether a module is of the kind that patterns and
            predicates choose from.

    Returns:
        dict[str, nn.Module]: The chosen layers by dotted name.

    Raises:
        ValueError: If a selector other than None chooses nothing.
    """
    if selector is None:
        return {}
    chosen = {
        name: module
        for name, module in _layers(model)
        if _matches(selector, name, module, is_kind)
    }
    if not chosen:
        raise ValueError(
            f'{argument}={selector!r} chooses nothing in this '
            f'{type(model).__name__}: give a pattern for the dotted names of '
            'its modules, a class, a predicate, or None')
    return chosen


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module without children that is not part of our layers."""
    inside = tuple(f'{name}.' if name else ''
                   for name, module in model.named_modules()
                   if isinstance(module, OURS))
    for name, module in model.named_modules():
        is_leaf = next(module.children(), None) is None
        if name and is_leaf and not (
                name.startswith(inside) or isinstance(module, OURS)):
            yield name, module


def _matches(selector: Selector, name: str, module: nn.Module,
             is_kind: Callable[[nn.Module], bool]) -> bool:
    if isinstance(selector, str):
        return type(module).__name__ == selector or (
            is_kind(module) and fnmatchcase(name, selector))
    if isinstance(selector, type):
        return isinstance(module, selector)
    if isinstance(selector, Sequence):
        return any(_matches(s, name, module, is_kind) for s in selector)
    return is_kind(module) and bool(selector(name, module))
