# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Loading a checkpoint's weights into a model."""
import re

from torch import nn

from ..utils.errors import UserError
from .loaders import load_checkpoint
from .validate import check_state_dict


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
    check_fit(model, content.get('state_dict', content), checkpoint)
    return content.get('meta', {})


def load_state_dict(model: nn.Module, state_dict: dict, source: str) -> None:
    """Check the values of a state dict and load every key of it.

    Raises:
        UserError: As :func:`check_state_dict` and :func:`check_fit`.
    """
    check_state_dict(state_dict, source)
    check_fit(model, state_dict, source)


def check_fit(model: nn.Module, state_dict: dict, source: str) -> None:
    """Load a state dict, and refuse one that is not of the model.

    Layers may merge an earlier form while they load, so that only loading
    tells whether every key is used.

    Raises:
        UserError: If keys or shapes do not fit; names the first few.
    """
    # A wrapper around the saved model puts its name before the keys.
    state_dict = {k.removeprefix('module.'): v for k, v in state_dict.items()}
    problems = {}
    try:
        found = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as e:
        problems = _mismatched(e)
        rest = {k: v for k, v in state_dict.items() if k not in problems}
        if len(rest) == len(state_dict):
            raise UserError(f'{source} does not fit the config: {e}') from e
        found = model.load_state_dict(rest, strict=False)
    for key in found.missing_keys:
        problems.setdefault(key, 'is missing')
    for key in found.unexpected_keys:
        problems.setdefault(key, 'is not in the model')
    # Lambda is 1 where a checkpoint does not tell, and counters of batches
    # do not change outputs.
    texts = [
        f'{key} {problem}' for key, problem in problems.items()
        if not key.endswith(('.lam', '.num_batches_tracked'))
    ]
    if texts:
        more = f'; and {len(texts) - 3} more' if len(texts) > 3 else ''
        raise UserError(
            f'{source} does not fit the config: {"; ".join(texts[:3])}{more}')


def _mismatched(error: RuntimeError) -> dict[str, str]:
    """Read off torch's error which entries have another shape."""
    found = re.findall(
        r'size mismatch for (\S+): copying a param with shape '
        r'torch\.Size\(\[(.*?)\]\) from checkpoint, the shape in current '
        r'model is torch\.Size\(\[(.*?)\]\)', str(error))
    return {
        key: f'has shape ({given}) for ({wanted})'
        for key, given, wanted in found
    }
