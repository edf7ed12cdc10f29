# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Narrow networks in which each layer counts, and errors to put in them."""
import importlib.util

import pytest
import torch
from golden import relative_l2
from torch import Tensor, nn

from mmvanilla.models import VanillaNet, VanillaNetHead

METADATA = dict(labels=['a', 'b'], mean=[1.5, 2, 3], input_size=[64, 64])
TINY = dict(dims=[4, 8, 8, 12], strides=[2, 1, 2])
# The published variants, 1/64 as wide.
NARROW_ARCHS = {
    name: dict(arch, dims=[dim // 64 for dim in arch['dims']])
    for name, arch in VanillaNet.arch_settings.items()
}


def needs(*packages: str) -> None:
    """Skip a test where a package of the extra `export` is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed')


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network, in eval mode, so that no signal fades or grows."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.1)
                nn.init.normal_(module.bias, 0, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    net.eval()  # of some networks of mmpretrain it returns nothing
    return net


def vanillanet(arch: dict, deploy: bool = True, **kwargs) -> VanillaNet:
    return randomize(VanillaNet(arch, deploy=deploy, **kwargs))


def relative_error(outputs, references) -> float:
    """The maximum of ||output - reference|| / ||reference||."""
    if isinstance(outputs, Tensor):
        outputs, references = [outputs], [references]
    return max(map(relative_l2, outputs, references))


def classifier(deploy: bool = True) -> nn.Module:
    from mmvanilla.export.network import Network
    dims = [8, 16, 24]
    return randomize(Network(
        VanillaNet(dict(dims=dims, strides=[2, 1]), deploy=deploy),
        VanillaNetHead(10, dims[-1], deploy=deploy)))


# What a wrong merge could do to a layer.


@torch.no_grad()
def one_weight(layer):
    layer.weight.view(-1)[7] *= -1


@torch.no_grad()
def one_channel(layer):
    layer.weight[1].zero_()


@torch.no_grad()
def swapped(layer):
    """Two output channels, that is classes of a head, exchanged."""
    for tensor in (layer.weight, layer.bias):
        tensor[:2] = tensor[:2].flip(0).clone()


@torch.no_grad()
def small_bias(layer):
    layer.bias[0] += 1e-3 * layer.bias.norm()


@torch.no_grad()
def not_a_number(layer):
    layer.bias[0] = float('nan')


MUTATIONS = [one_weight, one_channel, swapped, small_bias, not_a_number]
