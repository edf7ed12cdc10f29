# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.runner import load_state_dict
from narrow import randomize
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmvanilla.layers import (
    DeepTrainingConv2d,
    switch_to_deploy,
)
from mmvanilla.layers.deep_training import start_as


@pytest.mark.parametrize('name, function', [
    ('ReLU', torch.relu), ('Tanh', torch.tanh)])
@pytest.mark.parametrize('lam', [0.0, 0.3, 1.0])
def test_outputs_and_gradients(name, function, lam):
    conv = DeepTrainingConv2d(
        2, 3, 3, act_cfg=dict(type=name), post_norm=True).double()
    conv.act.lam = lam
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    torch.testing.assert_close(
        conv.act(x), (1 - lam) * function(x) + lam * x)


@pytest.mark.parametrize('lam', [-0.1, 1.1, float('nan')])
def test_lambda_out_of_range(lam):
    conv = DeepTrainingConv2d(2, 3, 1)
    with pytest.raises(ValueError, match='from 0 to 1'):
        conv.act.lam = lam
    state = conv.state_dict()
    state['act.lam'] = torch.tensor(lam)
    with pytest.raises(RuntimeError, match='act.lam.*from 0 to 1'):
        conv.load_state_dict(state)
    assert conv.lam == 1
    conv.act.lam = 0.75
    for switch in (conv.switch_to_finetune, conv.switch_to_deploy):
        with pytest.raises(RuntimeError, match=r'lambda is 0\.75'):
            switch()


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_state_dict_carries_lambda(load):
    source, target = DeepTrainingConv2d(2, 3, 1), DeepTrainingConv2d(2, 3, 1)
    source.act.lam = 1 / 3
    state = source.state_dict()
    assert state['act.lam'].dtype == torch.float64
    load(target, state, strict=True)
    assert target.lam == 1 / 3

    # Without an entry the weights have lambda 1, whatever it was before.
    del state['act.lam']
    load(target, state, strict=True)
    assert target.lam == 1
    # What has none of the weights leaves lambda as it is.
    target.act.lam = 0.25
    load(target, {'conv2.bias': torch.zeros(3)}, strict=False)
    assert target.lam == 0.25


@pytest.mark.parametrize('device, dtype', [
    ('cpu', torch.bfloat16), ('meta', torch.float64)])
def test_merge_gives_a_plain_convolution(device, dtype):
    with torch.device(device):
        conv = DeepTrainingConv2d(4, 8, 3).to(dtype).requires_grad_(False)
    seen = []
    conv.register_forward_hook(lambda module, args, out: seen.append(module))
    assert switch_to_deploy(conv) == 1
    weight, bias = conv.weight, conv.bias
    assert switch_to_deploy(conv) == 0
    assert conv.weight is weight and conv.bias is bias
    for tensor in (weight, bias):
        assert (tensor.device.type, tensor.dtype) == (device, dtype)
        assert not tensor.requires_grad
    # Of the hooks only the user's are there.
    conv(torch.rand(1, 4, 4, 4, device=device, dtype=dtype))
    assert seen == [conv] and type(conv) is nn.Conv2d
    assert vars(conv).keys() == vars(nn.Conv2d(4, 8, 3)).keys()


@pytest.mark.parametrize('form', [
    dict(), dict(bias=False), dict(bias=False, norm_cfg=None),
    dict(post_norm=True), dict(post_norm=True, deep_training=False),
    dict(deploy=True)], ids=str)
def test_start_as_a_plain_convolution(form):
    plain = nn.Conv2d(4, 6, 3, groups=2, bias=form.get('bias', True))
    layer = randomize(DeepTrainingConv2d(4, 6, 3, groups=2, **form))
    x = torch.randn(2, 4, 8, 8)
    if not form.get('post_norm'):  # else these are entries of a deploy form
        layer.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(layer(x), plain(x))
        randomize(layer, seed=1)
    start_as(layer, plain)
    torch.testing.assert_close(layer(x), plain(x))


def test_what_does_not_fit():
    for norm_cfg in (dict(type='GN', num_groups=2),
                     dict(type='BN', track_running_stats=False)):
        with pytest.raises(ValueError, match='batch norm'):
            DeepTrainingConv2d(4, 4, 3, norm_cfg=norm_cfg)
    for kwargs in (dict(mid_channels=3), dict(bias=False, norm_cfg=None)):
        with pytest.raises(RuntimeError, match='Unexpected key.*"bias"'):
            DeepTrainingConv2d(4, 6, 3, **kwargs).load_state_dict(
                nn.Conv2d(4, 6, 3).state_dict())


def test_compiles_at_most_three_times_over_a_schedule():
    conv = nn.Sequential(*(DeepTrainingConv2d(4, 4, 1) for _ in range(3)))
    counter = CompileCounter()
    compiled = torch.compile(conv, backend=counter, fullgraph=True)
    reference = copy.deepcopy(conv)
    x = torch.randn(2, 4, 5, 5)
    for step in range(20):
        for layer in (*conv, *reference):
            layer.act.lam = step / 19
        torch.testing.assert_close(compiled(x), reference(x))
    assert counter.frame_count <= 3
