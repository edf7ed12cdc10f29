# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What others do to a network finds the layers that it knows."""
import copy
import pickle

import pytest
import timm
import torch
from golden import relative_l2
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.parameter import is_lazy

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    find_layers,
    switch_to_deploy,
)
from mmvanilla.models import VanillaNet

CFGS = dict(
    conv_cfg=dict(type='DeepTrainingConv2d'),
    act_cfg=dict(type='SeriesActivation', act_num=1))
TINY = dict(dims=[4, 8, 8, 12], strides=[2, 1, 2])


def test_by_name_without_a_default_scope(monkeypatch):
    # A scope that another test left.
    monkeypatch.setattr(DefaultScope, '_instance_dict', {})
    assert DefaultScope.get_current_instance() is None
    network = MODELS.build(
        dict(type='VGG', depth=11, norm_cfg=dict(type='BN'),
             conv_cfg=CFGS['conv_cfg'], act_cfg=CFGS['act_cfg']))
    # All series know their channels before the first image.
    assert not any(is_lazy(p) for p in network.parameters())
    network.init_weights()
    assert len(find_layers(network)) == 16


def randomize(network: nn.Module) -> None:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    network.eval()


@pytest.mark.parametrize('deploy', [False, True])
def test_fuse_conv_bn(deploy):
    network = nn.Sequential(
        ConvModule(3, 8, 3, norm_cfg=dict(type='BN'), **CFGS),
        ConvModule(8, 8, 3, norm_cfg=dict(type='BN')))
    if deploy:
        switch_to_deploy(network)
    randomize(network)
    x = torch.randn(2, 3, 12, 12)
    expected = network(x)
    fused = fuse_conv_bn(copy.deepcopy(network))
    assert relative_l2(fused(x), expected) < 1e-5
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    # The network's own norm behind a pair of convolutions stays.
    assert len(norms) == (not deploy)
    switch_to_deploy(fused)
    assert relative_l2(fused(x), expected) < 1e-5
    assert not find_layers(fused)


def test_initialization_of_timm():
    network = VanillaNet(TINY)
    for name, module in network.named_modules():
        init_weights_vit_timm(module, name)
    timm.models.convnext._init_weights(network)
    efficientnet_init_weights(network)
    network(torch.randn(2, 3, 32, 32))


def test_timm_backbone():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(
            dict(
                type='WithDeepTraining',
                model=dict(
                    type='TIMMBackbone',
                    model_name='resnet10t',
                    features_only=True),
                act_cfg=CFGS['act_cfg'],
                input_shape=(3, 32, 32)))
    backbone.init_weights()
    randomize(backbone)
    x = torch.randn(2, 3, 32, 32)
    expected = backbone(x)[-1]
    assert switch_to_deploy(backbone) > 20
    assert relative_l2(backbone(x)[-1], expected) < 1e-5


def deployed() -> nn.Module:
    network = VanillaNet(TINY)
    network.init_weights()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=module.weight[0].numel()**-0.5)
    randomize(network)
    network.switch_to_deploy()
    return network


def test_deployed_network_is_made_of_plain_layers():
    kinds = {type(m) for m in deployed().modules()
             if next(m.children(), None) is None}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d}


class FirstOutput(nn.Module):

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)[0]


@pytest.mark.filterwarnings('ignore')
def test_fx_quantization():
    network = FirstOutput(deployed()).eval()
    x = torch.rand(8, 3, 64, 64)
    expected = network(x)
    mapping = QConfigMapping().set_global(get_default_qconfig('x86'))
    prepared = prepare_fx(network, mapping, (x, ))
    prepared(x)
    quantized = convert_fx(prepared)
    convs = [m for m in quantized.modules()
             if 'Conv' in type(m).__name__]
    assert len(convs) == 8
    assert all('quantized' in type(m).__module__ for m in convs)
    assert relative_l2(quantized(x), expected) < 0.2


@pytest.mark.filterwarnings('ignore')
def test_eager_quantization():
    class Quantized(FirstOutput):

        def __init__(self, network):
            super().__init__(network)
            self.quant = torch.ao.quantization.QuantStub()
            self.dequant = torch.ao.quantization.DeQuantStub()

        def forward(self, x):
            return self.dequant(self.network(self.quant(x))[0])

    network = Quantized(deployed()).eval()
    x = torch.rand(8, 3, 64, 64)
    expected = network(x)
    network.qconfig = get_default_qconfig('x86')
    torch.ao.quantization.prepare(network, inplace=True)
    network(x)
    torch.ao.quantization.convert(network, inplace=True)
    assert sum(isinstance(m, torch.ao.nn.quantized.Conv2d)
               for m in network.modules()) == 8
    assert relative_l2(network(x), expected) < 0.2


def test_whole_models_are_pickled():
    network = nn.Sequential(
        DeepTrainingConv2d(3, 4, 1), SeriesActivation(), nn.PixelShuffle(2),
        SeriesActivation(act_num=0))
    assert network[1].num_channels == 4 and network[3].num_channels is None
    x = torch.randn(2, 3, 8, 8)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other[3].num_channels is None
        assert other(x).shape == (2, 1, 16, 16)
    network(x)
    assert torch.equal(
        pickle.loads(pickle.dumps(network)).eval()(x), network.eval()(x))
