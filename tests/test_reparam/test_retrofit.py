# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import timm
import torch
import torchvision
from golden import relative_l2
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import (
    VGG,
    AlexNet,
    MobileNetV2,
    RepVGG,
    ResNet,
)
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.registry import MODELS
from torch import nn
from torchvision.ops import Conv2dNormActivation

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    set_lam,
    switch_to_deploy,
)
from mmvanilla.reparam import add_deep_training

LAYERS = dict(
    conv_cfg=dict(type='DeepTrainingConv2d'),
    act_cfg=dict(type='SeriesActivation', act_num=1))
SHAPE = (3, 64, 64)


def changed(network: nn.Module, **kwargs) -> nn.Module:
    kwargs = dict(input_shape=SHAPE, act_cfg=LAYERS['act_cfg'], **kwargs)
    add_deep_training(network, **kwargs)
    return network


def plain_stack() -> nn.Module:
    """ConvNeXt's layers, by torchvision's parts, one behind the other."""
    layers = [Conv2dNormActivation(3, 16, 4, 4, 0)]
    for width in (16, 32):
        layers += [
            Conv2dNormActivation(
                width, width, 7, groups=width, activation_layer=None),
            Conv2dNormActivation(width, 4 * width, 1, activation_layer=nn.GELU,
                                 norm_layer=None, inplace=None),
            Conv2dNormActivation(4 * width, 2 * width, 2, 2, 0,
                                 activation_layer=nn.GELU, inplace=None),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(64, 10))


# How each network gets its layers, and how many of each it must have.
NETWORKS = {
    'ResNet-18':
    (lambda **kw: changed(ResNet(18, base_channels=16, stem_channels=16),
                          **kw), 20, 17),
    'ResNet-50':
    (lambda **kw: changed(ResNet(50, base_channels=8, stem_channels=8), **kw),
     53, 49),
    'VGG-11': (lambda deploy=False: VGG(
        11, norm_cfg=dict(type='BN'), **in_form(deploy)), 8, 8),
    'AlexNet': (lambda **kw: changed(AlexNet(), **kw), 5, 5),
    'MobileNetV2': (lambda deploy=False: MobileNetV2(
        widen_factor=0.25, **in_form(deploy)), 52, 35),
    'RepVGG': (lambda deploy=False: RepVGG('A0', **in_form(deploy)), 44, 22),
    'torchvision plain stack':
    (lambda **kw: changed(plain_stack(), **kw), 7, 5),
    'torchvision ConvNeXt': (lambda **kw: changed(
        torchvision.models.ConvNeXt([
            torchvision.models.convnext.CNBlockConfig(8, 16, 1),
            torchvision.models.convnext.CNBlockConfig(16, None, 1)
        ]), acts=None, **kw), 4, 0),
    'timm': (lambda **kw: changed(
        timm.create_model('resnet10t', num_classes=10), **kw), 14, 11),
}


def in_form(deploy: bool) -> dict:
    return {k: dict(cfg, deploy=deploy) for k, cfg in LAYERS.items()}


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        yield


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = network(x)
    return out[-1] if isinstance(out, tuple) else out


def count(network: nn.Module, kind: type) -> int:
    return sum(isinstance(m, kind) for m in network.modules())


@pytest.mark.parametrize('name', NETWORKS)
def test_trains_merges_and_reloads(name):
    build, convs, acts = NETWORKS[name]
    network = build()
    assert count(network, DeepTrainingConv2d) == convs
    assert count(network, SeriesActivation) == acts
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network.train()
    x = torch.randn(4, *SHAPE)
    for lam in (0, 0.5, 1):
        set_lam(network, lam)
        loss = features(network, x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
    # Every parameter of every layer has a part in the network.
    for layer in network.modules():
        if isinstance(layer, (DeepTrainingConv2d, SeriesActivation)):
            assert all(p.grad is not None for p in layer.parameters())

    network.eval()
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = features(network, x)
        merged = copy.deepcopy(network)
        assert switch_to_deploy(merged) == convs + acts
        assert relative_l2(features(merged, x), expected) <= 1e-5
        shipped = build(deploy=True)
        shipped.eval()
        shipped.load_state_dict(merged.state_dict(), strict=True)
        assert torch.equal(features(shipped, x), features(merged, x))


@pytest.mark.parametrize('build', [
    lambda: ResNet(50, base_channels=8, stem_channels=8), AlexNet, plain_stack,
    lambda: timm.create_model('efficientnet_lite0')
])
def test_outputs_are_kept(build):
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    network.eval()
    published = copy.deepcopy(network.state_dict())
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = features(network, x)
        changed(network)
        assert relative_l2(features(network, x), expected) <= 1e-5

        # The same weights again, into a network that has its layers already.
        fresh = build()
        changed(fresh)
        fresh.eval()
        assert relative_l2(features(fresh, x), expected) > 1e-2
        missing, unexpected = fresh.load_state_dict(published, strict=False)
        assert not unexpected
        assert relative_l2(features(fresh, x), expected) <= 1e-5


def test_published_weights_by_config(tmp_path):
    plain = ResNet(18, base_channels=8, stem_channels=8)
    plain.init_weights()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    cfg = dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8,
        init_cfg=init_cfg)
    networks = [
        MODELS.build(dict(cfg, conv_cfg=LAYERS['conv_cfg'])),
        MODELS.build(dict(type='WithDeepTraining', model=cfg))
    ]
    x = torch.randn(1, *SHAPE)
    plain.eval()
    for network in networks:
        network.init_weights()
        network.eval()
        assert relative_l2(features(network, x), features(plain, x)) <= 1e-5


@pytest.mark.parametrize('conv', [
    nn.Conv2d(8, 12, 3, padding=1, groups=4),
    nn.Conv2d(8, 8, 3, padding=1, groups=8),
    nn.Conv2d(8, 12, 3, dilation=2, padding=2),
    nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=(1, 0)),
    nn.Conv2d(8, 12, 3, bias=False),
    nn.Conv2d(8, 12, 3, padding='same'),
    nn.Conv2d(8, 12, 3, padding=1, padding_mode='reflect'),
    nn.Conv2d(8, 12, 3, padding=2, padding_mode='circular'),
], ids=str)
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_convolutions_merge_exactly(conv, norm_cfg):
    network = nn.Sequential(copy.deepcopy(conv)).double().eval()
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    expected = network(x)
    done = add_deep_training(
        network, acts=None,
        conv_cfg=dict(type='DeepTrainingConv2d', norm_cfg=norm_cfg))
    assert done.convs == ['0'] and not done.skipped
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not key.endswith('lam'):
            value.uniform_(0.5, 1.5)
    expected = network(x)
    switch_to_deploy(network)
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)
    plain = copy.deepcopy(conv).double()
    with torch.no_grad():
        plain.weight.copy_(network[0].weight)
        if plain.bias is None and network[0].bias is not None:
            plain.bias = nn.Parameter(network[0].bias)
        elif plain.bias is not None:
            plain.bias.copy_(network[0].bias)
    torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10)


class Standardized(nn.Conv2d):

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean())


class Halves(nn.Module):

    def forward(self, x):
        return x.relu()[:, :, ::2]


class Odd(nn.Module):
    """A network with everything that cannot be replaced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.ws = Standardized(4, 4, 1)
        self.normed = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
        self.linear = nn.Linear(4, 4)
        self.last = nn.ReLU()
        self.halves = Halves()
        self.flat = nn.ReLU()
        self.unused = nn.ReLU()
        self.good = nn.ReLU()

    def forward(self, x):
        x = self.good(self.normed(self.ws(self.up(self.conv(x)))))
        x = self.last(self.linear(x.permute(0, 2, 3, 1)))
        return self.flat(self.halves(x.permute(0, 3, 1, 2)).flatten(1))


def test_what_cannot_merge_is_named():
    network = Odd().eval()
    x = torch.randn(1, 3, 16, 16)
    expected = network(x)
    done = add_deep_training(
        network,
        convs=['*', nn.Linear],
        acts=['*', Halves, nn.Linear],
        input_shape=(3, 16, 16))
    assert done.convs == ['conv'] and done.acts == ['good']
    for name, why in {
            'up': 'ConvTranspose2d', 'ws': 'Standardized', 'normed': 'hooks',
            'linear': 'is a Linear, not a convolution',
            'last': 'comes from a Linear', 'flat': 'has 2 dimensions',
            'halves': 'changes the shape', 'unused': 'is not called'}.items():
        assert why in done.skipped[name]
        assert f'{name}: {done.skipped[name]}' in str(done)
    assert len(done.skipped) == 8
    torch.testing.assert_close(network(x), expected)
    switch_to_deploy(network)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize('convs, acts, expected', [
    ('features.[0-3]', None, ['features.0', 'features.3']),
    ('Conv2d', None, [f'features.{i}' for i in (0, 3, 6, 8, 10)]),
    (nn.Conv2d, None, [f'features.{i}' for i in (0, 3, 6, 8, 10)]),
    (lambda name, conv: conv.kernel_size == (5, 5), None, ['features.3']),
    (['features.0', '*.10'], None, ['features.0', 'features.10']),
    (None, 'features.1', ['features.1']),
    (None, nn.ReLU, [f'features.{i}' for i in (1, 4, 7, 9, 11)]),
    (None, lambda name, act: name.endswith('1'),
     ['features.1', 'features.11']),
])
def test_selection(convs, acts, expected):
    network = AlexNet()
    done = add_deep_training(network, convs, acts, input_shape=SHAPE)
    assert done.convs + done.acts == expected
    found = [
        name for name, module in network.named_modules()
        if isinstance(module, (DeepTrainingConv2d, SeriesActivation))
    ]
    assert found == expected


@pytest.mark.parametrize('kwargs, message', [
    (dict(convs='feature.*'), "convs='feature.*' chooses nothing"),
    (dict(acts=nn.Tanh), 'chooses nothing'),
    (dict(convs=lambda name, conv: False), 'chooses nothing'),
    (dict(input_shape=(1, 64, 64)), r'does not run on .*\(1, 64, 64\)'),
    (dict(conv_cfg=dict(type='DeepTrainingConv2d',
                        norm_cfg=dict(type='LN2d'))), 'batch norm'),
    (dict(act_cfg=dict(type='SeriesActivation', act_num=-1)), 'act_num'),
])
def test_refusals_leave_the_network_as_it_was(kwargs, message):
    network = AlexNet()
    before = str(network)
    with pytest.raises(ValueError, match=message):
        add_deep_training(network, **dict(dict(input_shape=SHAPE), **kwargs))
    assert str(network) == before
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks
                   for m in network.modules())


def test_modes_dtypes_and_frozen_weights_are_kept():
    network = AlexNet().double()
    network.features[:3].eval()
    network.features[0].requires_grad_(False)
    changed(network)
    assert all(p.dtype == torch.float64 for p in network.parameters())
    assert not network.features[0].training
    assert not network.features[1].norm.training
    assert network.features[3].norm1.training
    assert not any(p.requires_grad for p in network.features[0].parameters())
    assert all(p.requires_grad for p in network.features[3:].parameters())
    switch_to_deploy(network)
    assert not network.features[0].weight.requires_grad


def test_on_meta():
    with torch.device('meta'):
        network = changed(AlexNet())
    assert all(p.is_meta for p in network.parameters())


def test_a_second_time_finds_nothing():
    network = changed(AlexNet())
    with pytest.raises(ValueError, match='chooses nothing'):
        add_deep_training(network, input_shape=SHAPE)


# ------------------------------- one activation that a block calls repeatedly


def test_each_call_of_a_bottleneck_has_its_series():
    network = changed(ResNet(50, base_channels=8, stem_channels=8))
    block = network.layer2[0].eval()
    assert isinstance(block, Bottleneck)
    acts = [block.relu_1, block.relu_2, block.relu_3]
    assert [act.num_channels for act in acts] == [16, 16, 64]

    # By hand, with the block's other parts: which series takes which call.
    for i, act in enumerate(acts):
        nn.init.constant_(act.norm.bias, i + 1.0)
    x = torch.randn(2, 32, 8, 8)
    out = acts[0](block.norm1(block.conv1(x)))
    out = acts[1](block.norm2(block.conv2(out)))
    out = block.norm3(block.conv3(out)) + block.downsample(x)
    torch.testing.assert_close(block(x), acts[2](out))


def test_gradients_are_the_same_with_checkpointing():
    network = changed(ResNet(50, base_channels=8, stem_channels=8))
    other = copy.deepcopy(network)
    for module in other.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = True
    x = torch.randn(2, *SHAPE)
    for net in (network, other):
        features(net, x).square().mean().backward()
    for a, b in zip(network.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_network_can_be_captured():
    network = changed(ResNet(50, base_channels=8, stem_channels=8))
    network.eval()
    x = torch.randn(1, *SHAPE)
    with torch.no_grad():
        expected = features(network, x)
        compiled = torch.compile(network, backend='eager', fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(features(compiled, x), expected)
        switch_to_deploy(network)
        expected = features(network, x)
        program = torch.export.export(network, (x, )).module()
        torch.testing.assert_close(features(program, x), expected)


class Shared(nn.Module):
    """One head for maps of several sizes, and one ReLU for two blocks."""

    def __init__(self):
        super().__init__()
        relu = nn.ReLU()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), relu)
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), relu)
        self.head = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())

    def forward(self, x):
        x = self.second(self.first(x))
        return self.head(x), self.head(nn.functional.max_pool2d(x, 2))


def test_what_is_shared():
    network = changed(Shared())
    # Two blocks with one ReLU need a series each; a head that is one network
    # for all sizes stays one.
    assert network.first[1].num_channels == 4
    assert network.second[1].num_channels == 6
    assert isinstance(network.head[1], SeriesActivation)
    assert count(network, SeriesActivation) == 3


class Tied(nn.Module):

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.third = nn.Conv2d(3, 3, 1)
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(self.third(self.second(self.first(x))))


def test_shared_parameters_stay_shared():
    network = Tied()
    done = add_deep_training(network, input_shape=SHAPE)
    assert done.convs == ['third'] and done.acts == ['act']
    assert done.skipped == {
        'first': 'shares a parameter with "second"',
        'second': 'shares a parameter with "first"'
    }
    assert network.first.weight is network.second.weight


def test_a_network_that_breaks_is_put_back():
    """EdgeNeXt reads the weight of its first convolution."""
    network = MODELS.build(dict(type='EdgeNeXt', arch='xxsmall'))
    network.eval()
    before = str(network)
    modules = list(network.modules())
    x = torch.randn(1, *SHAPE)
    expected = features(network, x)
    with pytest.raises(
            ValueError,
            match=r'is as it was: "[\w.]+", a \w+: AttributeError: '
            r".*no attribute 'weight'; choose without"):
        changed(network)
    assert str(network) == before
    assert all(a is b for a, b in zip(modules, network.modules(), strict=True))
    assert torch.equal(features(network, x), expected)
