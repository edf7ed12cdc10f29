# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Loading a checkpoint's weights into a model."""
import re

from torch import nn

from ..utils.errors import UserError
from .loaders import load_checkpoint


def load_weights(model: nn.Module, checkpoint: str) -> dict:
    """Load a checkpoint's weights into a model, in place and strictly.

    Args:
        model (nn.Module): The model.
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
    """Load a state dict into a model, in place and strictly.

    Lambda and counters of batches may be missing: lambda is then 1. Layers
    may merge an earlier form while they load, so the keys can only be checked
    by loading them.

    Args:
        model (nn.Module): The model.
        state_dict (dict): Its values have been checked, as
            :func:`load_checkpoint` does.
        source (str): Where it comes from, for the error.

    Raises:
        UserError: If keys are missing, unexpected or mismatched; names the
            first few. Some of the weights may have been loaded then.
    """
    # Wrappers such as DDP add this prefix.
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
    texts = [
        f'{key} {problem}' for key, problem in problems.items()
        if not key.endswith(('.lam', '.num_batches_tracked'))
    ]
    if texts:
        more = f'; and {len(texts) - 3} more' if len(texts) > 3 else ''
        raise UserError(
            f'{source} does not fit the config: {"; ".join(texts[:3])}{more}')


def _mismatched(error: RuntimeError) -> dict[str, str]:
    """Parse torch's error: which entries have another shape."""
    found = re.findall(
        r'size mismatch for (\S+): copying a param with shape '
        r'torch\.Size\(\[(.*?)\]\) from checkpoint, the shape in current '
        r'model is torch\.Size\(\[(.*?)\]\)', str(error))
    return {
        key: f'has shape ({given}) for ({wanted})'
        for key, given, wanted in found
    }
