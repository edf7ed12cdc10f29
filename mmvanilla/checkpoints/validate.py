# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checking the values of a state dict before anything is built from it."""
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError


def check_state_dict(state_dict: Any, source: str) -> None:
    """Refuse an object that is not the state dict of a trained network.

    Args:
        state_dict (Any): The object to check.
        source (str): Where it comes from, for the error.

    Raises:
        UserError: If it is not a dict or is empty; if a key is not a
            printable string; if an entry is not a dense tensor of real
            numbers; if weights or statistics are not finite, a variance is
            negative, a lambda is not a number from 0 to 1, or a batch counter
            is not one integer. Names the entry.
    """
    if not isinstance(state_dict, dict) or not state_dict:
        raise UserError(f'{source} holds no weights: its state dict is '
                        f'{"empty" if state_dict == {} else "not a dict"}')
    for key, value in state_dict.items():
        if type(key) is not str or not key.isprintable():
            raise UserError(f'{source} is refused: its state dict has the key '
                            f'{ascii(key)[:100]}')
        problem = _problem(key, value)
        if problem:
            raise UserError(f'{source} is refused: {key[:100]} {problem}')


def _problem(key: str, value: Any) -> str | None:
    """The predicate of the message about a wrong entry; None if valid."""
    if not isinstance(value, Tensor):
        return f'is of type {type(value).__name__}, not a tensor'
    if (value.layout != torch.strided or value.is_quantized or value.is_meta
            or value.is_complex()):
        return 'is not a dense tensor of real numbers'
    name = key.rpartition('.')[2]
    if name == 'num_batches_tracked':
        if value.numel() != 1 or value.is_floating_point():
            return 'is not one integer'
    elif name == 'lam':
        if value.numel() != 1 or not 0 <= float(value) <= 1:
            return 'is not a number from 0 to 1'
    elif value.is_floating_point():
        value = _compact(value.detach())
        # Attention masks hold -inf.
        if 'mask' not in name and not value.isfinite().all():
            return 'holds numbers that are not finite'
        if name == 'running_var' and (value < 0).any():
            return 'holds a negative variance'
    return None


def _compact(value: Tensor) -> Tensor:
    """One element along each dimension that a tensor is expanded in."""
    for dim, step in enumerate(value.stride()):
        if step == 0 and value.shape[dim] > 1:
            value = value.narrow(dim, 0, 1)
    return value
