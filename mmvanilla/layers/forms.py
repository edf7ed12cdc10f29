# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The walk from train form to deploy form, the same for every model."""

from torch import nn

from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .series_activation import SeriesActivation

BRICKS = (DeepTrainingConv2d, SeriesActivation)


def find_bricks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every brick in train form, in the model's order."""
    return [(name, module) for name, module in model.named_modules()
            if isinstance(module, BRICKS) and not module.deploy]


def find_activations(model: nn.Module) -> dict[str, DeepTrainingActivation]:
    """Every fading activation of a model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DeepTrainingActivation)
    }


def set_lam(model: nn.Module, lam: float) -> None:
    """Set lambda of every brick of a model.

    Args:
        model (nn.Module): Any network, wrapped (DDP, FSDP, torch.compile) or
            not.
        lam (float): From 0 to 1.
    """
    for act in find_activations(model).values():
        act.lam = lam


def switch_to_deploy(model: nn.Module) -> int:
    """Merge every brick of a model, in place.

    Either all are merged or, where one refuses, none.

    Args:
        model (nn.Module): A backbone, classifier, detector, segmentor or any
            other network.

    Returns:
        int: How many bricks were merged; 0 for a model in deploy form.

    Raises:
        RuntimeError: If some lambda is not 1; names the first such brick and
            its lambda.
    """
    bricks = find_bricks(model)
    for name, brick in bricks:
        if isinstance(brick, DeepTrainingConv2d) and brick.lam != 1:
            raise RuntimeError(
                f'cannot merge "{name}": its lambda is {brick.lam:g}, not 1, '
                'so the two convolutions still have an activation between '
                'them. Train until the end of the decay first')
    for _, brick in bricks:
        brick.switch_to_deploy()
    return len(bricks)
