# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import DefaultScope
from mmengine.runner import load_state_dict
from narrow import randomize
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmvanilla.layers import (
    DeepTrainingActivation,
    DeepTrainingConv2d,
    switch_to_deploy,
)
from mmvanilla.layers.deep_training import start_as

ACTIVATIONS = {'ReLU': F.relu, 'Tanh': torch.tanh}


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('lam', [0.0, 0.3, 1.0])
def test_outputs_and_gradients(name, lam):
    torch.manual_seed(0)
    conv = DeepTrainingConv2d(
        2, 3, 3, act_cfg=dict(type=name), post_norm=True).double()
    conv.act.lam = lam
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    expected = (1 - lam) * ACTIVATIONS[name](x) + lam * x
    torch.testing.assert_close(conv.act(x.clone()), expected)


def test_activation_overwrites_its_input_only_where_told():
    x = torch.randn(8)
    before = x.clone()
    DeepTrainingActivation()(x)
    assert torch.equal(x, before)
    assert DeepTrainingActivation(inplace=True)(x) is x


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


@pytest.mark.parametrize('kwargs', [
    dict(kernel_size=(1, 5), padding=(0, 2), stride=(1, 2)),
    dict(kernel_size=3, padding='same', groups=4),
    dict(kernel_size=3, norm_cfg=dict(type='BN', affine=False)),
    dict(kernel_size=3, norm_cfg=None, bias=False)], ids=str)
@pytest.mark.parametrize('post_norm', [False, True])
def test_merge(kwargs, post_norm):
    conv = DeepTrainingConv2d(8, 16, post_norm=post_norm, **kwargs)
    randomize(conv.double())
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    expected = conv(x)
    conv.switch_to_deploy()
    torch.testing.assert_close(conv(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_merge_gives_a_plain_convolution(dtype, device):
    with torch.device(device):
        conv = DeepTrainingConv2d(4, 8, 3).to(dtype).requires_grad_(False)
    seen = []
    conv.register_forward_hook(lambda module, args, out: seen.append(module))
    assert switch_to_deploy(conv) == 1
    weight, bias = conv.weight, conv.bias
    assert switch_to_deploy(conv) == 0
    assert conv.weight is weight and conv.bias is bias
    assert weight.dtype == bias.dtype == dtype
    assert weight.device.type == bias.device.type == device
    assert not weight.requires_grad and not bias.requires_grad
    assert type(conv) is nn.Conv2d
    # Of the hooks only the user's are there.
    conv(torch.rand(1, 4, 4, 4, dtype=dtype, device=device))
    assert seen == [conv]
    assert vars(conv).keys() == vars(nn.Conv2d(4, 8, 3)).keys()


def test_merge_refuses_lambda_below_1():
    conv = DeepTrainingConv2d(4, 8, 3)
    conv.act.lam = 0.75
    keys = set(conv.state_dict())
    for switch in (conv.switch_to_finetune, conv.switch_to_deploy):
        with pytest.raises(RuntimeError, match=r'lambda is 0\.75'):
            switch()
    assert set(conv.state_dict()) == keys


def test_norm_that_does_not_fold():
    for norm_cfg in (dict(type='GN', num_groups=2),
                     dict(type='BN', track_running_stats=False)):
        with pytest.raises(ValueError, match='batch norm'):
            DeepTrainingConv2d(4, 4, 3, norm_cfg=norm_cfg)


@pytest.mark.parametrize('form', [
    dict(), dict(bias=False), dict(bias=False, norm_cfg=None),
    dict(post_norm=True), dict(post_norm=True, deep_training=False),
    dict(deploy=True)], ids=str)
@pytest.mark.parametrize('groups', [1, 2])
def test_start_as_a_plain_convolution(form, groups):
    plain = nn.Conv2d(4, 6, 3, groups=groups, bias=form.get('bias', True))
    layer = randomize(DeepTrainingConv2d(4, 6, 3, groups=groups, **form))
    x = torch.randn(2, 4, 8, 8)
    if not form.get('post_norm'):  # else these are entries of a deploy form
        layer.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(layer(x), plain(x))
    layer = randomize(DeepTrainingConv2d(4, 6, 3, groups=groups, **form))
    start_as(layer, plain)
    torch.testing.assert_close(layer(x), plain(x))
    assert getattr(layer, 'lam', 1) == 1


def test_a_plain_convolution_that_does_not_fit():
    state = nn.Conv2d(4, 6, 3).state_dict()
    for layer in (DeepTrainingConv2d(4, 6, 3, mid_channels=3),
                  DeepTrainingConv2d(4, 6, 3, bias=False, norm_cfg=None)):
        with pytest.raises(RuntimeError, match='Unexpected key.*"bias"'):
            layer.load_state_dict(state)


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain'])
def test_as_conv_cfg_of_any_network(scope):
    with DefaultScope.overwrite_default_scope(scope):
        module = ConvModule(3, 8, 3, conv_cfg=dict(type='DeepTrainingConv2d'))
    assert isinstance(module.conv, DeepTrainingConv2d)


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
    # What is written into a state dict holds from the next one on.
    for layer in conv:
        layer.state_dict()['act.lam'].fill_(0.5)
        layer.state_dict()
    for layer in reference:
        layer.act.lam = 0.5
    torch.testing.assert_close(compiled(x), reference(x))
