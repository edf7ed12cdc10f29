# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.parameter import is_lazy

from mmvanilla.layers import SeriesActivation


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


def has_all_parameters(module: nn.Module) -> bool:
    return not any(is_lazy(p) for p in module.parameters())


ACT = dict(type='SeriesActivation', act_num=1)


@pytest.mark.parametrize('name, kwargs', [
    ('VGG', dict(depth=11, norm_cfg=dict(type='BN'))),
    ('VGG', dict(depth=11)),
    ('RepVGG', dict(arch='A0')),
    ('MobileNetV2', dict(widen_factor=0.25)),
    ('EfficientNet', dict(arch='b0')),
    ('ShuffleNetV2', dict()),
])
@pytest.mark.parametrize('deploy', [False, True])
def test_channels_before_the_first_input(name, kwargs, deploy):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(
            dict(kwargs, type=name, act_cfg=dict(ACT, deploy=deploy)))
    assert has_all_parameters(network)
    acts = [m for m in network.modules() if isinstance(m, SeriesActivation)]
    assert len(acts) > 5
    network.eval()
    # Each would refuse a map of another width than it found.
    network(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'),
                                   ('norm', 'act', 'conv'),
                                   ('act', 'conv', 'norm')])
def test_channels_follow_the_order_of_a_block(order):
    module = ConvModule(
        3, 8, 3, norm_cfg=dict(type='BN'), order=order,
        act_cfg=dict(ACT, type='mmpretrain.SeriesActivation'))
    assert module.activate.num_channels == (8 if order[0] == 'conv' else 3)
    module(torch.randn(2, 3, 6, 6))


def test_channels_from_the_layer_before():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.Dropout2d(),
        SeriesActivation(),
        nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)),
        SeriesActivation())
    assert network[3].num_channels == 8 and network[5].num_channels == 5
    assert has_all_parameters(network)
    # What an unknown layer gives out is not guessed.
    assert nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2),
                         SeriesActivation())[2].num_channels is None


def test_an_average_of_the_weights_before_the_first_input():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), SeriesActivation())
    average = ExponentialMovingAverage(network)
    average.update_parameters(network)
    x = torch.randn(2, 3, 6, 6)
    network.eval(), average.eval()
    torch.testing.assert_close(average(x), network(x))


def test_channels_last_are_refused():
    with pytest.raises(ValueError, match='Sequential it follows a Linear'):
        nn.Sequential(nn.Linear(3, 4), SeriesActivation())


def test_another_width_is_refused():
    act = SeriesActivation(4)
    for shape in [(1, 5, 6, 6), (1, 4)]:
        with pytest.raises(RuntimeError, match='of 4 channels got an input'):
            act(torch.randn(shape))
