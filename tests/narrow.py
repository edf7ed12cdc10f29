# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Narrow networks in which each layer counts."""
import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from mmvanilla.models import VanillaNet, VanillaNetHead

METADATA = dict(labels=['a', 'b'], mean=[1.5, 2, 3], input_size=[64, 64])
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
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, 0, (2 / fan_in)**0.5)
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
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(outputs, references, strict=True))


def classifier(deploy: bool = True) -> nn.Module:
    from mmvanilla.export.network import Network
    dims = [8, 16, 24, 24]
    return randomize(
        Network(
            VanillaNet(dict(dims=dims, strides=[2, 2, 1]), deploy=deploy),
            VanillaNetHead(10, dims[-1], deploy=deploy)))


# What a wrong merge could do to a classifier.


def one_weight(net):
    net.backbone.stages[1].conv.weight[3, 2] += 0.1


def swapped_classes(net):
    for tensor in (net.head.classifier.weight, net.head.classifier.bias):
        tensor[[2, 7]] = tensor[[7, 2]]


def one_bias(net):
    bias = net.head.classifier.bias
    bias[4] += 1e-3 * bias.norm()


def not_a_number(net):
    net.backbone.stages[0].act.conv.weight[0] = torch.nan


def negated(net):
    net.head.classifier.weight.neg_()
    net.head.classifier.bias.neg_()


MUTATIONS = (one_weight, swapped_classes, one_bias, not_a_number, negated)


def mutated(net, mutation):
    """A copy of a network, mutated."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        mutation(net)
    return net


def samples(net, count=8, size=64):
    """Inputs of a classifier, and the classes that it predicts."""
    torch.manual_seed(1)
    inputs = [torch.randn(1, 3, size, size) for _ in range(count)]
    with torch.no_grad():
        labels = [net(x)[0].argmax().item() for x in inputs]
    return inputs, labels
