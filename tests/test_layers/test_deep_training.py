# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.runner import load_state_dict
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmvanilla.layers import (
    DeepTrainingActivation,
    DeepTrainingConv2d,
    switch_to_deploy,
)

ACTIVATIONS = {'ReLU': F.relu, 'Tanh': torch.tanh, 'GELU': F.gelu}


def randomize(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('lam', [0.0, 0.3, 1.0])
def test_activation(name, lam):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    act = DeepTrainingActivation(dict(type=name))
    act.lam = lam
    expected = (1 - lam) * ACTIVATIONS[name](x) + lam * x
    torch.testing.assert_close(act(x), expected)


def test_activation_overwrites_its_input_only_where_told():
    x = torch.randn(8)
    before = x.clone()
    act = DeepTrainingActivation()
    act.lam = 0.5
    act(x)
    assert torch.equal(x, before)
    inplace = DeepTrainingActivation(inplace=True)
    inplace.lam = 0.5
    assert inplace(x) is x


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('lam', [0.0, 0.3, 1.0])
def test_gradient(name, lam):
    conv = DeepTrainingConv2d(
        2, 3, 3, act_cfg=dict(type=name), post_norm=True).double()
    conv.act.lam = lam
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)


@pytest.mark.parametrize('lam', [-0.1, 1.1, float('nan')])
def test_lambda_out_of_range(lam):
    with pytest.raises(ValueError, match='from 0 to 1'):
        DeepTrainingActivation().lam = lam


@pytest.mark.parametrize('load', [
    lambda module, state: module.load_state_dict(state, strict=True),
    lambda module, state: load_state_dict(module, state, strict=True),
])
def test_state_dict_carries_lambda(load):
    source = DeepTrainingConv2d(2, 3, 1)
    source.act.lam = 1 / 3
    state = source.state_dict()
    target = DeepTrainingConv2d(2, 3, 1)
    load(target, state)
    assert target.lam == 1 / 3

    # Without an entry it is 1, also where it was something else before.
    del state['act.lam']
    load(target, state)
    assert target.lam == 1


def test_lambda_survives_casts_and_copies():
    conv = DeepTrainingConv2d(2, 3, 1)
    conv.act.lam = 0.1
    assert copy.deepcopy(conv).half().lam == 0.1
    assert 'act.lam' not in dict(conv.named_buffers())


def test_broken_lambda_in_state_dict():
    state = DeepTrainingConv2d(2, 3, 1).state_dict()
    state['act.lam'] = torch.tensor(1.5)
    with pytest.raises(RuntimeError, match='act.lam.*from 0 to 1.*1.5'):
        DeepTrainingConv2d(2, 3, 1).load_state_dict(state)


@pytest.mark.parametrize('kwargs', [
    dict(kernel_size=1),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=4, stride=4),
    dict(kernel_size=(1, 5), padding=(0, 2), stride=(1, 2)),
    dict(kernel_size=3, dilation=2, padding=2),
    dict(kernel_size=3, padding=1, groups=4),
    dict(kernel_size=3, padding=1, groups=8, mid_channels=16),
    dict(kernel_size=3, padding='same'),
    dict(kernel_size=3, padding=1, padding_mode='reflect'),
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=3, padding=1, bias=False, norm_cfg=None),
    dict(kernel_size=3, padding=1, norm_cfg=None),
    dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN', affine=False)),
    dict(kernel_size=2, mid_channels=3),
    dict(kernel_size=2, act_cfg=dict(type='Tanh')),
    dict(kernel_size=2, act_cfg=dict(type='GELU')),
], ids=str)
@pytest.mark.parametrize('post_norm', [False, True])
def test_merge(kwargs, post_norm):
    torch.manual_seed(0)
    kwargs = dict(kwargs, post_norm=post_norm)
    conv = DeepTrainingConv2d(8, 16, **kwargs).double().eval()
    randomize(conv)
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    expected = conv(x)
    conv.switch_to_deploy()
    torch.testing.assert_close(conv(x), expected, rtol=1e-10, atol=1e-10)
    assert conv.weight.is_contiguous()
    # The same shape as the convolution that it stands for.
    plain_kwargs = {
        k: v for k, v in kwargs.items() if k in (
            'kernel_size', 'stride', 'padding', 'dilation', 'groups')
    }
    assert conv.weight.shape == nn.Conv2d(8, 16, **plain_kwargs).weight.shape

    built = DeepTrainingConv2d(8, 16, deploy=True, **kwargs).double()
    built.load_state_dict(conv.state_dict(), strict=True)
    torch.testing.assert_close(built(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64,
                                   torch.bfloat16])
def test_merge_keeps_dtype_and_is_idempotent(dtype):
    conv = DeepTrainingConv2d(4, 8, 3).to(dtype)
    conv.switch_to_deploy()
    weight, bias = conv.weight, conv.bias
    assert weight.dtype == bias.dtype == dtype
    assert weight.is_contiguous()
    assert type(conv) is nn.Conv2d
    assert switch_to_deploy(conv) == 0
    assert conv.weight is weight and conv.bias is bias
    assert not list(conv.children())


def test_merge_stays_on_the_device():
    with torch.device('meta'):
        conv = DeepTrainingConv2d(4, 8, 3)
    conv.switch_to_deploy()
    assert conv.weight.device.type == conv.bias.device.type == 'meta'


def test_merge_keeps_frozen_weights_frozen():
    conv = DeepTrainingConv2d(4, 8, 3).requires_grad_(False)
    conv.switch_to_deploy()
    assert not conv.weight.requires_grad and not conv.bias.requires_grad


def test_merge_refuses_lambda_below_1():
    conv = DeepTrainingConv2d(4, 8, 3)
    conv.act.lam = 0.75
    keys = set(conv.state_dict())
    with pytest.raises(RuntimeError, match=r'4, 8.*lambda is 0\.75'):
        conv.switch_to_deploy()
    assert set(conv.state_dict()) == keys


def test_the_layer_is_named_and_all_or_none_are_merged():
    model = nn.ModuleDict(
        dict(a=DeepTrainingConv2d(2, 2, 1), b=DeepTrainingConv2d(2, 2, 1)))
    model['b'].act.lam = 0.5
    with pytest.raises(RuntimeError, match=r'"b".*lambda is 0\.5'):
        switch_to_deploy(model)
    assert isinstance(model['a'], DeepTrainingConv2d)
    model['b'].act.lam = 1
    assert switch_to_deploy(model) == 2
    assert switch_to_deploy(model) == 0


@pytest.mark.parametrize('norm_cfg', [
    dict(type='GN', num_groups=2),
    dict(type='IN'),
    dict(type='BN', track_running_stats=False),
])
def test_norm_that_does_not_fold(norm_cfg):
    with pytest.raises(ValueError, match='batch norm'):
        DeepTrainingConv2d(4, 4, 3, norm_cfg=norm_cfg)


@pytest.mark.parametrize('name', ['DeepTrainingConv2d',
                                  'mmpretrain.DeepTrainingConv2d'])
def test_as_conv_cfg_of_any_network(name):
    cfg = dict(type=name)
    assert isinstance(build_conv_layer(cfg, 3, 4, 3), DeepTrainingConv2d)
    module = ConvModule(
        3, 8, 3, padding=1, conv_cfg=cfg, norm_cfg=dict(type='BN')).eval()
    randomize(module)
    x = torch.randn(2, 3, 6, 6)
    expected = module(x)
    assert switch_to_deploy(module) == 1
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_compiles_at_most_three_times_over_a_schedule():
    conv = nn.Sequential(*(DeepTrainingConv2d(4, 4, 1) for _ in range(3)))
    counter = CompileCounter()
    compiled = torch.compile(conv, backend=counter)
    reference = copy.deepcopy(conv)
    x = torch.randn(2, 4, 5, 5)
    for step in range(20):
        for model in (conv, reference):
            for layer in model:
                layer.act.lam = step / 19
        torch.testing.assert_close(compiled(x), reference(x))
    assert counter.frame_count <= 3
