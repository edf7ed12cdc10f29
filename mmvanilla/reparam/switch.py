# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a model with a checkpoint's weights, with errors that name it."""
from pathlib import Path

from torch import nn

from ..layers.forms import switch_to_deploy, switch_to_finetune
from ..utils.errors import UserError


def switch_loaded(model: nn.Module,
                  checkpoint: str | Path,
                  form: str = 'deploy') -> int:
    """Convert a model whose weights are those of a checkpoint, in place.

    Args:
        model (nn.Module): The model, with its weights loaded.
        checkpoint (str | Path): Where they come from, for the error.
        form (str): 'deploy' or 'finetune'. Defaults to 'deploy'.

    Returns:
        int: How many layers were converted.

    Raises:
        UserError: If a layer cannot be converted, for example since its
            lambda is below 1; names the checkpoint and the layer. The model
            is then as it was.
    """
    switch = dict(deploy=switch_to_deploy, finetune=switch_to_finetune)[form]
    try:
        return switch(model)
    except RuntimeError as e:
        raise UserError(f'{checkpoint}: {e}') from e
