# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Loading a checkpoint's weights into a model."""
from torch import nn
from torch.nn.parameter import is_lazy

from ..utils.errors import UserError
from .hub import load_checkpoint


def load_weights(model: nn.Module, checkpoint: str) -> dict:
    """Load a checkpoint, every key of it, into a model.

    A checkpoint without lambda loads as lambda 1.

    Args:
        model (nn.Module): What to load into, in place.
        checkpoint (str): A checkpoint of mmengine, a state dict, or a name
            with ``vanillanet://``.

    Returns:
        dict: The checkpoint's ``meta``, empty if it has none.

    Raises:
        UserError: If the file is not a checkpoint or does not fit the model.
    """
    content = load_checkpoint(checkpoint)
    load_state_dict(model, content.get('state_dict', content), checkpoint)
    return content.get('meta', {})


def load_state_dict(model: nn.Module, state_dict: dict, source: str) -> None:
    """``model.load_state_dict`` whose error is one sentence.

    Raises:
        UserError: As :func:`check_fit`.
    """
    state_dict = _without_prefix(state_dict)
    check_fit(model, state_dict, source)
    model.load_state_dict(state_dict, strict=False)


def check_fit(model: nn.Module, state_dict: dict, source: str) -> None:
    """Refuse a state dict that is not, entry by entry, of a model.

    Raises:
        UserError: If keys or shapes do not fit; names the first few.
    """
    state_dict = _without_prefix(state_dict)
    wanted = model.state_dict()
    misfits = [
        f'{key} has shape {tuple(state_dict[key].shape)} for '
        f'{tuple(value.shape)}' for key, value in wanted.items()
        if key in state_dict and not is_lazy(value)
        and state_dict[key].shape != value.shape
    ]
    # Lambda is 1 where a checkpoint does not tell, and counters of batches
    # say nothing about the network's answers.
    optional = ('.lam', '.num_batches_tracked')
    misfits += [
        f'{key} is missing' for key in wanted
        if key not in state_dict and not key.endswith(optional)
    ]
    misfits += [
        f'{key} is not in the model' for key in state_dict
        if key not in wanted and not key.endswith(optional)
    ]
    if misfits:
        more = len(misfits) - 3
        raise UserError(
            f'{source} does not fit the config: ' + '; '.join(misfits[:3]) +
            (f'; and {more} more' if more > 0 else ''))


def _without_prefix(state_dict: dict) -> dict:
    """Take off what a wrapper around the saved model put before its keys."""
    return {k.removeprefix('module.'): v for k, v in state_dict.items()}
