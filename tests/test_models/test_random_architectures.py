# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""300 random networks: what every one of them must be able to do."""
import copy
import pickle
import random

import pytest
import torch
from golden import relative_l2
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    find_layers,
    switch_to_deploy,
    switch_to_finetune,
)
from mmvanilla.models import VanillaNet

ACTS = [dict(type=t) for t in ('ReLU', 'ReLU6', 'Tanh', 'GELU', 'PReLU')]
SIZE = 32


def random_vanillanet(rng: random.Random, **form) -> nn.Module:
    depth = rng.randint(1, 4)
    arch = dict(
        dims=[rng.randint(1, 12) for _ in range(depth + 1)],
        strides=[1] * depth)
    stride = rng.randrange(depth)
    arch['strides'][stride] = 2
    if rng.random() < 0.3:
        arch['ada_pool'] = [0] * depth
        arch['ada_pool'][stride] = rng.randint(1, 5)
    return VanillaNet(
        arch,
        act_num=rng.randint(0, 4),
        out_indices=range(depth),
        act_cfg=rng.choice(ACTS),
        norm_cfg=dict(type='BN', eps=rng.choice([1e-6, 1e-3])),
        **form)


def conv_arguments(rng: random.Random) -> dict:
    kernel_size = rng.choice([1, 2, 3, (1, 3)])
    return dict(
        kernel_size=kernel_size,
        stride=rng.choice([1, 1, 2]),
        padding=rng.choice([0, 1]),
        dilation=rng.choice([1, 1, 2]),
        groups=rng.choice([1, 1, 3]))


def conv_cfg(rng: random.Random, **form) -> dict:
    return dict(
        type='DeepTrainingConv2d',
        norm_cfg=rng.choice([None, dict(type='BN', eps=1e-5)]),
        act_cfg=rng.choice(ACTS),
        mid_channels=rng.choice([None, 3, 9]),
        post_norm=rng.random() < 0.5,
        **form)


def act_cfg(rng: random.Random, deploy: bool = False, **form) -> dict:
    return dict(
        type='SeriesActivation',
        act_num=rng.randint(0, 3),
        act_cfg=rng.choice(ACTS),
        deploy=deploy)


def random_block(rng: random.Random, **form) -> nn.Module:
    cfg = conv_cfg(rng, **form)
    del cfg['type']
    act = act_cfg(rng, **form)
    del act['type']
    return nn.Sequential(
        DeepTrainingConv2d(
            3, 6, bias=rng.random() < 0.5,
            padding_mode=rng.choice(['zeros', 'reflect', 'circular']),
            **conv_arguments(rng), **cfg),
        rng.choice([nn.MaxPool2d(2), nn.Identity(), nn.PixelUnshuffle(1)]),
        SeriesActivation(rng.choice([None, 6]), **act), nn.Conv2d(6, 2, 1))


def random_conv_module(rng: random.Random, **form) -> nn.Module:
    return ConvModule(
        3, 6, conv_cfg=conv_cfg(rng, **form), act_cfg=act_cfg(rng, **form),
        norm_cfg=rng.choice([None, dict(type='BN')]),
        order=tuple(rng.sample(('conv', 'norm', 'act'), 3)),
        padding_mode=rng.choice(['zeros', 'reflect']),
        **conv_arguments(rng))


KINDS = dict(
    vanillanet=random_vanillanet,
    block=random_block,
    conv_module=random_conv_module)


def randomize(network: nn.Module) -> None:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=module.weight[0].numel()**-0.5)
            elif isinstance(module, _BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)


def output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = network(x)
    outs = out if isinstance(out, (tuple, list)) else [out]
    return torch.cat([out.flatten() for out in outs])


@pytest.mark.parametrize('seed', range(100))
@pytest.mark.parametrize('kind', KINDS)
def test_random(kind, seed):

    def build(**form) -> nn.Module:
        return KINDS[kind](random.Random(seed), **form).eval()

    torch.manual_seed(seed)
    network = build()
    x = torch.randn(2, 3, SIZE, SIZE)
    network(x)  # tells the series their channels
    randomize(network)
    double = copy.deepcopy(network).double()
    expected = output(double, x.double())
    assert len(expected) and expected.isfinite().all()
    assert relative_l2(output(network, x), expected) < 1e-5

    finetune = copy.deepcopy(double)
    switch_to_finetune(finetune)
    assert relative_l2(output(finetune, x.double()), expected) < 1e-12
    states = [network.state_dict(), finetune.state_dict()]
    switch_to_deploy(finetune)
    switch_to_deploy(double)
    for merged in (finetune, double):
        assert not find_layers(merged)
        assert relative_l2(output(merged, x.double()), expected) < 1e-12

    switch_to_deploy(network)
    assert relative_l2(output(network, x), expected) < 1e-5
    states.append(network.state_dict())
    merged = output(network, x)
    for state in states:
        built = build(deploy=True)
        built.load_state_dict(state, strict=True)
        assert relative_l2(output(built, x), expected) < 1e-5
    for copied in (copy.deepcopy(network),
                   pickle.loads(pickle.dumps(network))):
        assert torch.equal(output(copied, x), merged)
    if seed < 10:
        exported = torch.export.export(network, (x, )).module()
        assert relative_l2(output(exported, x), merged) < 1e-6
    if seed < 2:
        compiled = torch.compile(network, backend='aot_eager', fullgraph=True)
        assert relative_l2(output(compiled, x), merged) < 1e-6
