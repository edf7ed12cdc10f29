# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Errors that a merged model may have, and models to put them in."""
import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights that make every output depend on the image."""
    torch.manual_seed(seed)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)


@torch.no_grad()
def one_weight(layer):
    """One weight of another sign."""
    layer.weight.view(-1)[7] *= -1


@torch.no_grad()
def one_channel(layer):
    """One output channel without weights."""
    layer.weight[1].zero_()


@torch.no_grad()
def swapped(layer):
    """Two output channels, that is classes of a head, exchanged."""
    layer.weight[:2] = layer.weight[:2].flip(0).clone()
    layer.bias[:2] = layer.bias[:2].flip(0).clone()


@torch.no_grad()
def small_bias(layer):
    """A bias off by 1e-3 of its norm."""
    layer.bias[0] += 1e-3 * layer.bias.norm()


@torch.no_grad()
def not_a_number(layer):
    """One bias that is not a number."""
    layer.bias[0] = float('nan')


MUTATIONS = [one_weight, one_channel, swapped, small_bias, not_a_number]
