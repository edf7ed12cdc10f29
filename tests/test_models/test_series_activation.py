# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmvanilla.models import SeriesActivation


def by_definition(x, weight, n, base):
    """The sum of the paper's equation, neighbour by neighbour."""
    activated = nn.functional.pad(base(x), (n, n, n, n))
    height, width = x.shape[2:]
    out = torch.zeros_like(x)
    for i in range(2 * n + 1):
        for j in range(2 * n + 1):
            shifted = activated[:, :, i:i + height, j:j + width]
            out += weight[:, 0, i, j, None, None] * shifted
    return out


@pytest.mark.parametrize('n', [0, 1, 3, 4])
@pytest.mark.parametrize('name, base', [('ReLU', torch.relu),
                                        ('Tanh', torch.tanh),
                                        ('GELU', nn.functional.gelu)])
def test_both_forms_against_the_definition(n, name, base):
    torch.manual_seed(0)
    act = SeriesActivation(
        5, act_num=n, act_cfg=dict(type=name)).double().eval()
    assert act.weight.shape == (5, 1, 2 * n + 1, 2 * n + 1)
    act.norm.running_mean.normal_()
    act.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(act.norm.weight)
    nn.init.normal_(act.norm.bias)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    expected = act.norm(by_definition(x, act.weight, n, base))
    torch.testing.assert_close(act(x), expected)

    act.switch_to_deploy()
    torch.testing.assert_close(act(x), expected)
    assert act.weight.is_contiguous()
    weight = act.weight
    act.switch_to_deploy()
    assert act.weight is weight
    built = SeriesActivation(
        5, act_num=n, act_cfg=dict(type=name), deploy=True).double()
    built.load_state_dict(act.state_dict(), strict=True)
    torch.testing.assert_close(built(x), expected)


@pytest.mark.parametrize('deploy', [False, True])
def test_channels_from_the_first_input(deploy):
    act = SeriesActivation(act_num=1, deploy=deploy)
    parameters = list(act.parameters())
    assert act(torch.randn(2, 6, 4, 4)).shape == (2, 6, 4, 4)
    assert act.weight.shape == (6, 1, 3, 3)
    # An optimizer that was built before holds the same parameters.
    assert all(a is b for a, b in zip(parameters, act.parameters()))


@pytest.mark.parametrize('deploy', [False, True])
def test_channels_from_the_state_dict(deploy):
    source = SeriesActivation(6, act_num=1, deploy=deploy)
    act = SeriesActivation(act_num=1, deploy=deploy)
    act.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(act.eval()(x), source.eval()(x))


def test_unknown_channels_do_not_merge():
    with pytest.raises(RuntimeError, match='channels are known'):
        SeriesActivation().switch_to_deploy()


def test_as_act_cfg_of_any_network():
    module = ConvModule(
        3, 8, 3, act_cfg=dict(type='mmpretrain.SeriesActivation', act_num=1))
    assert module(torch.randn(2, 3, 6, 6)).shape == (2, 8, 4, 4)
    assert isinstance(module.activate, SeriesActivation)


@pytest.mark.parametrize('kwargs', [
    dict(num_channels=4, act_num=-1),
    dict(num_channels=4, norm_cfg=dict(type='GN', num_groups=2)),
    dict(norm_cfg=dict(type='GN', num_groups=2)),
])
def test_refusals(kwargs):
    with pytest.raises(ValueError):
        SeriesActivation(**kwargs)
