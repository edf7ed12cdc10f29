# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from golden import relative_l2
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import VGG, MobileNetV2, RepVGG, ResNet
from mmpretrain.registry import MODELS
from torch import nn

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    set_lam,
    switch_to_deploy,
)
from mmvanilla.reparam import add_deep_training

SHAPE = (3, 32, 32)
SMALL = dict(base_channels=8, stem_channels=8)
REPVGG = dict(
    num_blocks=[1, 2, 1, 1], width_factor=[0.25, 0.25, 0.25, 0.1],
    group_layer_map=None, se_cfg=None)
# Each network, how many convolutions and activations of it are replaced, and
# how many activations are skipped.
NETWORKS = {
    'ResNet-18': (lambda: ResNet(18, **SMALL), 20, 1, 8),
    'ResNet-50': (lambda: ResNet(50, **SMALL), 53, 1, 16),
    'VGG-11': (lambda: VGG(11, norm_cfg=dict(type='BN')), 8, 8, 0),
    'MobileNetV2': (lambda: MobileNetV2(widen_factor=0.25), 52, 35, 0),
    'RepVGG': (lambda: RepVGG(REPVGG), 12, 6, 0),
    'torchvision SqueezeNet':
    (lambda: torchvision.models.squeezenet1_1(num_classes=10), 26, 26, 0),
    'timm ResNet': (lambda: timm.create_model('test_resnet'), 15, 12, 0),
}


def changed(network: nn.Module, **kwargs) -> nn.Module:
    kwargs.setdefault('act_cfg', dict(type='SeriesActivation', act_num=1))
    add_deep_training(network, input_shape=SHAPE, **kwargs)
    return network


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = network(x)
    return out[-1] if isinstance(out, tuple) else out


def randomize(network: nn.Module) -> None:
    """Add seeded noise to weights and statistics.

    Not more of it: a deep network of random weights magnifies rounding errors
    from layer to layer.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                for p in module.parameters():
                    p.add_(torch.randn_like(p), alpha=0.1 * p.square().mean(
                        ).sqrt().clamp(min=0.1))


@pytest.mark.parametrize('name', NETWORKS)
def test_trains_merges_and_loads(name):
    build, convs, acts, skipped = NETWORKS[name]
    network = build()
    network.eval()
    randomize(network)
    published = copy.deepcopy(network.state_dict())
    before = torch.randn(2, *SHAPE)
    kept = features(network, before)
    kwargs = dict(
        act_cfg=dict(type='SeriesActivation', act_num=1), input_shape=SHAPE)
    done = add_deep_training(network, **kwargs)
    assert relative_l2(features(network, before), kept) <= 1e-5
    assert (len(done.convs), len(done.acts)) == (convs, acts)
    assert len(done.skipped) == skipped
    assert type(network) is type(build())

    randomize(network)
    start = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    network.train()
    x = torch.randn(2, *SHAPE)
    for lam in (0, 0.5, 1):
        set_lam(network, lam)
        out = network(x)
        loss = (out[-1] if isinstance(out, tuple) else out).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    # Every parameter of every layer has a part in the network.
    for layer in network.modules():
        if isinstance(layer, (DeepTrainingConv2d, SeriesActivation)):
            assert all(p.grad is not None for p in layer.parameters())

    network.load_state_dict(start)
    network.eval()
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = features(copy.deepcopy(network).double(), x)
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        merged = copy.deepcopy(network).to(dtype)
        assert switch_to_deploy(merged) == convs + acts
        assert relative_l2(features(merged, x.to(dtype)), expected) <= tol

    # The deploy form loads its own weights, and those of the train form.
    shipped = build()
    add_deep_training(shipped, deploy=True, **kwargs)
    shipped.eval()
    # The weights of before, into a network that has its layers already.
    assert relative_l2(features(shipped, before), kept) > 1e-2
    found = shipped.load_state_dict(published, strict=False)
    assert not found.unexpected_keys
    assert relative_l2(features(shipped, before), kept) <= 1e-5
    for weights in (merged.state_dict(), network.state_dict()):
        randomize(shipped)
        shipped.load_state_dict(weights, strict=True)
        out = features(shipped, x.float())
        assert torch.equal(out, features(merged, x.float()))


@pytest.mark.parametrize('conv', [
    nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False),
    nn.Conv2d(8, 12, 3, dilation=2, padding='same', padding_mode='reflect',
              groups=4),
    nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=(1, 0)),
], ids=str)
@pytest.mark.parametrize('form', [dict(), dict(deep_training=False)])
@pytest.mark.parametrize('cfg', [
    dict(norm_cfg=None), dict(norm_cfg=dict(type='BN', affine=False)),
    dict(post_norm=True)], ids=str)
def test_any_convolution(conv, form, cfg):
    network = nn.Sequential(copy.deepcopy(conv)).double().eval()
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    expected = network(x)
    add_deep_training(
        network, acts=None, input_shape=(8, 12, 11),
        conv_cfg=dict(type='DeepTrainingConv2d', **cfg), **form)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    randomize(network)
    expected = network(x)
    switch_to_deploy(network)
    assert type(network[0]) is nn.Conv2d
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
    for name in ('stride', 'padding', 'dilation', 'groups', 'padding_mode'):
        assert getattr(network[0], name) == getattr(conv, name)


# ------------------------------------------------------------ what is chosen


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 5)),
        nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Sigmoid())


@pytest.mark.parametrize('convs, acts, expected', [
    ('*', '*', ['0.0', '0.1', '0.2', '1', '2']),
    ('0.[01]', None, ['0.0']),
    ('Conv2d', None, ['0.0', '0.2', '2']),
    (nn.Conv2d, None, ['0.0', '0.2', '2']),
    (lambda name, conv: conv.kernel_size == (5, 5), None, ['0.2']),
    (['0.0', '2'], None, ['0.0', '2']),
    (None, '0.*', ['0.1']),
    (None, nn.Sigmoid, ['3']),
    (None, ['Tanh', lambda name, act: name.endswith('.1')], ['0.1', '1']),
])
def test_selection(convs, acts, expected):
    network = plain()
    done = add_deep_training(network, convs, acts, input_shape=SHAPE)
    found = [
        name for name, module in network.named_modules()
        if isinstance(module, (DeepTrainingConv2d, SeriesActivation))
    ]
    assert found == sorted(done.convs + done.acts) == expected


class Standardized(nn.Conv2d):

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean())


class Odd(nn.Module):
    """A network with everything that cannot be replaced."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.standardized = Standardized(4, 4, 1)
        self.normalized = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
        self.parametrized = nn.utils.parametrizations.weight_norm(
            nn.Conv2d(4, 4, 1))
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied_too = nn.Conv2d(4, 4, 1)
        self.tied_too.weight = self.tied.weight
        self.repeated = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 8)
        self.act, self.wide, self.last = nn.ReLU(), nn.PReLU(), nn.ReLU()
        self.flat, self.unused = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act(self.normalized(self.standardized(self.up(
            self.good(x)))))
        x = self.repeated(self.repeated(self.parametrized(x)))
        x = self.wide(self.tied_too(self.tied(x)))
        self.wide(torch.cat([x, x], 1))
        x = self.last(self.linear(x.permute(0, 2, 3, 1)))
        return self.flat(x.flatten(1))


def test_what_stays_and_why():
    network = Odd().eval()
    x = torch.randn(1, 3, 16, 16)
    expected = network(x)
    done = add_deep_training(
        network, convs=['*', nn.Linear], input_shape=(3, 16, 16))
    assert done.convs == ['good'] and done.acts == ['act']
    reasons = {
        'up': 'is a ConvTranspose2d, not a plain Conv2d',
        'standardized': 'is a Standardized, not',
        'parametrized': 'is a ParametrizedConv2d, not',
        'linear': 'is a Linear, not',
        'normalized': 'computes its weight',
        'tied': 'is shared',
        'tied_too': 'is shared',
        'repeated': 'is called 2 times in a forward pass, with 4 channels',
        'wide': 'is called 2 times in a forward pass, with 4 and 8 channels',
        'last': 'comes from a Linear',
        'flat': 'has 2 dimensions',
        'unused': 'is not called',
    }
    assert done.skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in done.skipped[name]
        assert f'{name}: {done.skipped[name]}' in str(done)
    torch.testing.assert_close(network(x), expected)
    switch_to_deploy(network)
    torch.testing.assert_close(network(x), expected)


def edgenext() -> nn.Module:
    """It reads the weight of its first convolution."""
    return MODELS.build(dict(type='EdgeNeXt', arch='xxsmall'))


@pytest.mark.parametrize('build, kwargs, message', [
    (plain, dict(convs='feature.*'), "convs='feature.*' chooses nothing"),
    (plain, dict(acts=nn.GELU), 'chooses nothing'),
    (plain, dict(convs=lambda name, conv: False), 'chooses nothing'),
    (plain, dict(input_shape=(1, 64, 64)), r"input_shape=\(1, 64, 64\)"),
    (plain, dict(conv_cfg=dict(type='DeepTrainingConv2d',
                               norm_cfg=dict(type='IN'))), 'batch norm'),
    (plain, dict(act_cfg=dict(type='SeriesActivation', act_num=-1)),
     'act_num'),
    (lambda: changed(plain()), dict(), 'chooses nothing'),
    (edgenext, dict(), "with its layers replaced, EdgeNeXt .*'weight'"),
])
def test_refusals_leave_the_network_as_it_was(build, kwargs, message):
    network = build()
    before, modules = str(network), list(network.modules())
    with pytest.raises(ValueError, match=message):
        add_deep_training(network, **dict(dict(input_shape=SHAPE), **kwargs))
    assert str(network) == before
    assert all(a is b for a, b in zip(modules, network.modules(), strict=True))
    assert all(m.training for m in modules)


def test_modes_dtypes_and_frozen_weights_are_kept():
    network = plain().double()
    network[0].eval()
    network[0][0].requires_grad_(False)
    changed(network)
    assert all(p.dtype == torch.float64 for p in network.parameters())
    assert not any(m.training for m in network[0].modules())
    assert all(m.training for m in network[1:].modules())
    assert not any(p.requires_grad for p in network[0][0].parameters())
    assert all(p.requires_grad for p in network[1:].parameters())
    switch_to_deploy(network)
    assert not network[0][0].weight.requires_grad


def test_on_meta():
    with torch.device('meta'):
        network = changed(plain())
    assert all(p.is_meta for p in network.parameters())


# ----------------------------------------------------------------- by config


def test_published_weights_by_config(tmp_path):
    network = ResNet(18, **SMALL)
    randomize(network)
    torch.save(network.state_dict(), tmp_path / 'plain.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    cfg = dict(type='ResNet', depth=18, init_cfg=init_cfg, **SMALL)
    x = torch.randn(1, *SHAPE)
    network.eval()
    for by_config in (dict(cfg, conv_cfg=dict(type='DeepTrainingConv2d')),
                      dict(type='WithDeepTraining', model=cfg)):
        other = MODELS.build(by_config)
        other.init_weights()
        other.eval()
        assert relative_l2(features(other, x), features(network, x)) <= 1e-5


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_network_is_that_of_the_scope(scope):
    pytest.importorskip(scope)
    cfg = dict(
        type='mmpretrain.WithDeepTraining',
        model=dict(type='ResNet', depth=18, **SMALL), input_shape=SHAPE)
    with DefaultScope.overwrite_default_scope(scope):
        network = ROOT.build(cfg)
    assert type(network).__module__.startswith(f'{scope}.')
    assert isinstance(network.layer4[1].conv2, DeepTrainingConv2d)


def test_in_a_bare_script():
    """Without a default scope, which other tests here have set."""
    code = '''
import mmvanilla
from mmengine.registry import MODELS as ROOT
from mmpretrain.registry import MODELS
for registry, name in ((MODELS, ''), (ROOT, 'mmpretrain.')):
    network = registry.build(dict(
        type=f'{name}WithDeepTraining', model=dict(type='VGG', depth=11)))
    assert type(network).__module__ == 'mmpretrain.models.backbones.vgg'
'''
    subprocess.run([sys.executable, '-c', code], check=True)
