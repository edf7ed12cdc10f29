# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""30 random networks: what each of them must be able to do."""
import copy
import pickle
import random
from functools import partial

import pytest
import torch
from golden import relative_l2
from mmcv.cnn import ConvModule
from narrow import randomize
from tiny import assert_same_weights
from torch import nn

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    find_layers,
    switch_to_deploy,
    switch_to_finetune,
)
from mmvanilla.layers.loading import check_loading
from mmvanilla.models import VanillaNet

ACTS = [dict(type=t) for t in ('ReLU', 'ReLU6', 'Tanh', 'GELU', 'PReLU')]


def random_vanillanet(rng: random.Random, **form) -> nn.Module:
    depth = rng.randint(1, 4)
    arch = dict(dims=[rng.randint(1, 12) for _ in range(depth + 1)],
                strides=[1] * depth)
    stride = rng.randrange(depth)
    arch['strides'][stride] = 2
    if rng.random() < 0.3:
        arch['ada_pool'] = [0] * depth
        arch['ada_pool'][stride] = rng.randint(1, 5)
    return VanillaNet(
        arch, act_num=rng.randint(0, 4), out_indices=range(depth),
        act_cfg=rng.choice(ACTS),
        norm_cfg=dict(type='BN', eps=rng.choice([1e-6, 1e-3])), **form)


def random_block(rng: random.Random, is_module: bool, **form) -> nn.Module:
    """A block by hand, or mmcv's with its order and its norm."""
    conv_cfg = dict(
        norm_cfg=rng.choice([None, dict(type='BN', eps=1e-5)]),
        act_cfg=rng.choice(ACTS),
        mid_channels=rng.choice([None, 3, 9]),
        post_norm=rng.random() < 0.5)
    conv = dict(
        in_channels=3, out_channels=6, kernel_size=rng.choice([1, 3, (1, 3)]),
        stride=rng.choice([1, 1, 2]), padding=rng.choice([0, 1]),
        dilation=rng.choice([1, 1, 2]), groups=rng.choice([1, 1, 3]),
        bias=rng.random() < 0.5,
        padding_mode=rng.choice(['zeros', 'reflect', 'circular']))
    if is_module:
        conv['padding_mode'] = 'zeros'
        block = ConvModule(
            conv_cfg=dict(conv_cfg, type='DeepTrainingConv2d', **form),
            order=tuple(rng.sample(('conv', 'norm', 'act'), 3)),
            norm_cfg=dict(type='BN'), **conv)
    else:
        act = SeriesActivation(6, rng.randint(0, 3), rng.choice(ACTS),
                               deploy=form.get('deploy', False))
        block = nn.Sequential(
            DeepTrainingConv2d(**conv, **conv_cfg, **form),
            rng.choice([nn.MaxPool2d(2), nn.Identity()]), act)
    # As WithDeepTraining does.
    check_loading(block, **conv_cfg)
    return block


@torch.no_grad()
def output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = network(x)
    outs = out if isinstance(out, (tuple, list)) else [out]
    return torch.cat([out.flatten() for out in outs])


@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('kind', [
    random_vanillanet, partial(random_block, is_module=False),
    partial(random_block, is_module=True)],
    ids=['VanillaNet', 'block', 'ConvModule'])
def test_random(kind, seed):

    def build(**form) -> nn.Module:
        return kind(random.Random(seed), **form).eval()

    network = randomize(build(), seed)
    x = torch.randn(2, 3, 32, 32)
    double = copy.deepcopy(network).double()
    expected = output(double, x.double())
    assert len(expected) and expected.isfinite().all()
    assert relative_l2(output(network, x), expected) < 1e-5

    states = [copy.deepcopy(network.state_dict())]
    for switch, form in ((switch_to_finetune, dict(deep_training=False)),
                         (switch_to_deploy, dict(deploy=True))):
        for net, tol in ((double, 1e-12), (network, 1e-5)):
            switch(net)
            assert switch(net) == 0
            out = output(net, x.to(next(net.parameters()).dtype))
            assert relative_l2(out, expected) < tol
        states.append(copy.deepcopy(network.state_dict()))
        # A built network of this form loads this form and the earlier.
        built = build(**form)
        assert ([type(m) for m in built.modules()]
                == [type(m) for m in network.modules()])
        for state in states:
            randomize(built)
            built.load_state_dict(state, strict=True)
            assert_same_weights(built.state_dict(), states[-1])
    assert not find_layers(double) and not find_layers(network)
    merged = output(network, x)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    assert torch.equal(output(copied, x), merged)
    if seed < 2:
        exported = torch.export.export(network, (x, )).module()
        assert relative_l2(output(exported, x), merged) < 1e-6
        compiled = torch.compile(network, backend='aot_eager', fullgraph=True)
        assert relative_l2(output(compiled, x), merged) < 1e-6
