# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The model inside of what a runner puts around it."""
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model without wrappers.

    Args:
        model (nn.Module): A runner's model: it may be inside of a wrapper of
            several processes, as DDP, or of test-time augmentation, or both.

    Returns:
        nn.Module: The model itself, not a copy.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
