# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Conversion between the three forms, the same for every model."""
from torch import nn

from .deep_training import DeepTrainingActivation, DeepTrainingConv2d
from .series_activation import SeriesActivation


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find every layer that is not in deploy form.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, nn.Module]: By dotted name, each ``DeepTrainingConv2d`` and
        each ``SeriesActivation`` that has a norm.
    """
    return {
        name: m for name, m in model.named_modules()
        if isinstance(m, DeepTrainingConv2d)
        or isinstance(m, SeriesActivation) and not m.deploy}


def find_activations(model: nn.Module) -> dict[str, DeepTrainingActivation]:
    """Find every activation of a model that has a lambda.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, DeepTrainingActivation]: The activations by dotted name.
        None is left in fine-tune form and in deploy form.
    """
    return {name: m for name, m in model.named_modules()
            if isinstance(m, DeepTrainingActivation)}


def set_lam(model: nn.Module, lam: float) -> None:
    """Set lambda of every layer of a model, in place.

    Args:
        model (nn.Module): Any network, wrapped (DDP, FSDP, torch.compile) or
            not.
        lam (float): From 0 to 1.

    Raises:
        ValueError: If ``lam`` is outside of that range.
    """
    for act in find_activations(model).values():
        act.lam = lam


def switch_to_deploy(model: nn.Module) -> int:
    """Convert every layer of a model to deploy form, in place.

    If one of them cannot be converted, none is.

    Args:
        model (nn.Module): A backbone, classifier, detector, segmentor or any
            other network, in train or fine-tune form.

    Returns:
        int: How many layers were converted; 0 for a model in deploy form.

    Raises:
        RuntimeError: If a lambda is not 1 or the parameters are sharded
            (FSDP); names the layer.
    """
    return _switch(find_layers(model), 'switch_to_deploy')


def switch_to_finetune(model: nn.Module) -> int:
    """Convert every ``DeepTrainingConv2d`` to fine-tune form, in place.

    The outputs in eval mode stay the same. The batch norms after the
    convolutions are kept, so that training can go on, in less time. If a
    layer cannot be converted, none is.

    Args:
        model (nn.Module): Any network in train form.

    Returns:
        int: How many layers were converted.

    Raises:
        RuntimeError: As :func:`switch_to_deploy`.
    """
    layers = {
        name: x for name, x in find_layers(model).items()
        if isinstance(x, DeepTrainingConv2d) and x.deep_training}
    return _switch(layers, 'switch_to_finetune')


def _switch(layers: dict[str, nn.Module], method: str) -> int:
    for name, layer in layers.items():
        reason = None
        if any(hasattr(p, 'full_tensor') for p in layer.parameters()):
            reason = ('its parameters are sharded (FSDP): save a checkpoint '
                      'and merge that')
        elif getattr(layer, 'lam', 1) != 1:
            reason = (f'its lambda is {layer.lam!r}, not 1: train until the '
                      'end of the decay first')
        if reason:
            raise RuntimeError(f'cannot merge "{name}": {reason}')
    for layer in layers.values():
        getattr(layer, method)()
    return len(layers)
