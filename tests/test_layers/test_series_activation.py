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
    assert act.conv.weight.shape == (5, 1, 2 * n + 1, 2 * n + 1)
    act.norm.running_mean.normal_()
    act.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(act.norm.weight)
    nn.init.normal_(act.norm.bias)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    expected = act.norm(by_definition(x, act.conv.weight, n, base))
    torch.testing.assert_close(act(x), expected)

    act.switch_to_deploy()
    torch.testing.assert_close(act(x), expected)
    assert act.conv.weight.is_contiguous()
    assert type(act.conv) is nn.Conv2d
    weight = act.conv.weight
    act.switch_to_deploy()
    assert act.conv.weight is weight
    built = SeriesActivation(
        5, act_num=n, act_cfg=dict(type=name), deploy=True).double()
    built.load_state_dict(act.state_dict(), strict=True)
    torch.testing.assert_close(built(x), expected)


@pytest.mark.parametrize('deploy', [False, True])
def test_channels_from_the_first_input(deploy):
    act = SeriesActivation(act_num=1, deploy=deploy)
    parameters = list(act.parameters())
    assert act(torch.randn(2, 6, 4, 4)).shape == (2, 6, 4, 4)
    assert act.conv.weight.shape == (6, 1, 3, 3)
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


@pytest.mark.parametrize('name', ['SeriesActivation',
                                  'mmpretrain.SeriesActivation'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain'])
def test_as_act_cfg_of_any_network(name, scope):
    with DefaultScope.overwrite_default_scope(scope):
        module = ConvModule(3, 8, 3, act_cfg=dict(type=name, act_num=1))
    assert module(torch.randn(2, 3, 6, 6)).shape == (2, 8, 4, 4)
    assert isinstance(module.activate, SeriesActivation)


@pytest.mark.parametrize('kwargs', [
    dict(num_channels=4, act_num=-1),
    dict(num_channels=4, norm_cfg=None),
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
                                   ('norm', 'conv', 'act'),
                                   ('conv', 'act', 'norm'),
                                   ('norm', 'act', 'conv'),
                                   ('act', 'norm', 'conv'),
                                   ('act', 'conv', 'norm')])
def test_channels_follow_the_order_of_a_block(order):
    module = ConvModule(
        3, 8, 3, norm_cfg=dict(type='BN'), order=order, act_cfg=ACT)
    is_behind = order.index('conv') < order.index('act')
    assert module.activate.num_channels == (8 if is_behind else 3)
    module(torch.randn(2, 3, 6, 6))


class Misleading(nn.Module):
    """Registers its layers in another order than it runs them in."""

    def __init__(self, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.shortcut = nn.Conv2d(3, 5, 1)
        self.act = SeriesActivation(act_num=1, **kwargs)

    def forward(self, x):
        return self.act(self.conv(x)), self.shortcut(x)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('norm_cfg', [
    dict(type='BN', eps=1e-3, requires_grad=False), dict(type='SyncBN')])
def test_the_first_input_corrects_the_channels(norm_cfg, deploy):
    block = Misleading(norm_cfg=norm_cfg, deploy=deploy).double().eval()
    parameters = list(block.parameters())
    x = torch.randn(2, 3, 6, 6).double()
    assert block(x)[0].shape == (2, 8, 6, 6)
    assert block.act.num_channels == block.act.conv.groups == 8
    # An optimizer that was built before holds the same parameters.
    assert all(a is b for a, b in zip(parameters, block.parameters()))
    assert all(p.dtype == torch.float64 for p in parameters)
    if not deploy:
        norm = block.act.norm
        assert norm.num_features == 8 and norm.running_var.shape == (8, )
        requires_grad = norm_cfg.get('requires_grad', True)
        assert norm.weight.requires_grad == requires_grad
    # From then on they stay.
    with pytest.raises(RuntimeError, match='of 8 channels got an input'):
        block.act(torch.randn(2, 5, 6, 6).double())


def test_initializers_pass_over_unknown_channels():
    network = nn.Sequential(nn.PixelShuffle(2), SeriesActivation())
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
    out = network(torch.randn(2, 8, 6, 6))
    assert out.shape == (2, 2, 12, 12)
    assert type(network[1].conv) is nn.Conv2d
    assert type(network[1].norm) is nn.BatchNorm2d


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
