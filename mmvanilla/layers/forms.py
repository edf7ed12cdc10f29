# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Conversion between the three forms, the same for every model."""
from torch import nn

from .deep_training import DeepTrainingConv2d
from .deep_training_activation import DeepTrainingActivation
from .series_activation import SeriesActivation


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find every layer that is not in deploy form.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, nn.Module]: By dotted name, each ``DeepTrainingConv2d`` (in
        deploy form it is an ``nn.Conv2d``) and each ``SeriesActivation`` that
        has a norm.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DeepTrainingConv2d) or (
            isinstance(module, SeriesActivation) and not module.deploy)
    }


def find_activations(model: nn.Module) -> dict[str, DeepTrainingActivation]:
    """Find every activation of a model that has a lambda.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, DeepTrainingActivation]: The activations by dotted name.
        None is left in fine-tune form and in deploy form.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DeepTrainingActivation)
    }


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
        RuntimeError: If a lambda is not 1, the channels of a series
            activation are unknown, or the parameters are sharded (FSDP);
            names the layer.
    """
    layers = find_layers(model)
    _check(layers)
    for layer in layers.values():
        layer.switch_to_deploy()
    return len(layers)


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
        name: layer
        for name, layer in find_layers(model).items()
        if isinstance(layer, DeepTrainingConv2d) and layer.deep_training
    }
    _check(layers)
    for layer in layers.values():
        layer.switch_to_finetune()
    return len(layers)


def _check(layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        reason = None
        if any(hasattr(p, 'full_tensor') for p in layer.parameters()):
            reason = ('its parameters are sharded (FSDP): save a checkpoint '
                      'and merge that')
        elif isinstance(layer, DeepTrainingConv2d) and layer.lam != 1:
            reason = (f'its lambda is {layer.lam!r}, not 1, so the two '
                      'convolutions still have an activation between them: '
                      'train until the end of the decay first')
        elif isinstance(layer, SeriesActivation) and (
                layer.num_channels is None):
            reason = ('its channels are unknown: give num_channels, load a '
                      'checkpoint or run a batch')
        if reason:
            raise RuntimeError(f'cannot merge "{name}": {reason}')
