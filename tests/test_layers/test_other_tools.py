# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Tools of others on networks of these layers."""
import copy
import io
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from golden import relative_l2
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from narrow import randomize
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.vision_transformer import init_weights_vit_timm
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mmvanilla.layers import (
    DeepTrainingConv2d,
    find_activations,
    find_layers,
    set_lam,
    switch_to_deploy,
)
from mmvanilla.models import VanillaNet

TINY = dict(dims=[4, 8, 8, 12], strides=[2, 1, 2])


def network(lam: float = 1.0) -> VanillaNet:
    net = randomize(VanillaNet(TINY))
    set_lam(net, lam)
    return net


def lams(net: nn.Module) -> set:
    return {act.lam for act in find_activations(net).values()}


@pytest.fixture
def one_process():
    dist.init_process_group(
        'gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('ema_type', [ModelEmaV2, ModelEmaV3])
def test_averages_of_timm(ema_type):
    net = network(0.0)
    ema = ema_type(net, decay=0.5)
    set_lam(net, 1)
    ema.update(net)
    assert lams(ema.module) == {0.5}  # as the weights, in place
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(ema.module(x)[0], network(0.5)(x)[0])
    if ema_type is ModelEmaV2:
        ema.set(net)
        assert lams(ema.module) == {1.0}


@pytest.mark.parametrize('average', [
    AveragedModel, ExponentialMovingAverage,
    lambda net: ExponentialMovingAverage(net, 0.0002, update_buffers=True)])
def test_averages_of_parameters_and_buffers(average):
    """Lambda is neither; DeepTrainingHook sets it in an average."""
    net = network(1 / 3)
    ema = average(net)
    for _ in range(3):
        ema.update_parameters(net)
    assert lams(ema) == lams(net) == {1 / 3}
    set_lam(ema, 1)
    assert lams(ema) == {1.0} and lams(net) == {1 / 3}
    ema.load_state_dict(average(net).state_dict())
    assert lams(ema) == {1 / 3}


def test_functional_call():
    net = network(1.0)
    other = network(0.3)
    x = torch.rand(2, 3, 32, 32)
    called = torch.func.functional_call(net, other.state_dict(), (x, ))
    torch.testing.assert_close(called[0], other(x)[0])
    assert lams(net) == {1.0}
    # An ensemble of two lambdas, whose entries have a batch dimension.
    states = [net.state_dict(), other.state_dict()]
    stacked = {k: torch.stack([s[k] for s in states]) for k in states[0]}

    def call(state):
        return torch.func.functional_call(net, state, (x, ))[0]

    for out, state in zip(torch.func.vmap(call)(stacked), states):
        torch.testing.assert_close(out, call(state))


def test_distributed_checkpoint(tmp_path, one_process):
    source, target = network(0.3), network(1.0)
    state = get_model_state_dict(source)
    dcp.save(state, checkpoint_id=tmp_path)
    dcp.load(target.state_dict(), checkpoint_id=tmp_path)
    assert lams(target) == {0.3}


def test_distributed_data_parallel(one_process):
    net = network(0.3).train()
    wrapped = DistributedDataParallel(net)
    for _ in range(2):
        wrapped(torch.rand(2, 3, 32, 32))[0].sum().backward()
    assert lams(wrapped) == {0.3}
    assert not [n for n, _ in net.named_buffers() if 'lam' in n]


def test_casts_copies_and_other_devices():
    net = network(0.1)
    for other in (copy.deepcopy(net).half(), copy.deepcopy(net).to('meta'),
                  pickle.loads(pickle.dumps(net))):
        assert lams(other) == {0.1}
        set_lam(other, 1)
    assert lams(net) == {0.1}
    with torch.device('meta'):
        built = VanillaNet(TINY)
    set_lam(built, 0.1)
    assert lams(built.to_empty(device='cpu')) == {0.1}


@pytest.mark.parametrize('trace', [
    lambda net, x: torch.export.export(net, (x, ), strict=True).module(),
    lambda net, x: torch.export.export(net, (x, ), strict=False).module(),
    lambda net, x: torch.compile(net, backend='aot_eager', fullgraph=True),
    lambda net, x: torch.fx.symbolic_trace(net), torch.jit.trace])
@torch.no_grad()
def test_tracing_of_the_train_form(trace):
    net = network(1.0)
    for entry in (k for k in net.state_dict() if k.endswith('.lam')):
        net.state_dict()[entry].fill_(0.3)  # in place
    x = torch.rand(2, 3, 32, 32)
    expected = net(x)[0]
    assert relative_l2(trace(net, x)(x)[0], expected) < 1e-6
    assert relative_l2(network(1.0)(x)[0], expected) > 1e-2


def test_deployed_convolutions_unpickle_without_this_package(tmp_path):
    switched = network()
    switched.switch_to_deploy()
    convs = [switched.stages[0].conv, VanillaNet(TINY, deploy=True).stem.conv,
             copy.deepcopy(switched).stem.conv]
    buffer = io.BytesIO()
    torch.save(convs, buffer)
    assert b'mmvanilla' not in buffer.getvalue()
    (tmp_path / 'convs.pt').write_bytes(buffer.getvalue())
    code = ("import sys, torch; sys.modules['mmvanilla'] = None\n"
            "for x in torch.load('convs.pt', weights_only=False):\n"
            '    assert x(torch.rand(1, x.in_channels, 8, 8)).shape[0] == 1')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)


def test_fuse_conv_bn():
    net = nn.Sequential(
        ConvModule(3, 8, 3, norm_cfg=dict(type='BN'),
                   conv_cfg=dict(type='DeepTrainingConv2d')),
        ConvModule(8, 8, 3, norm_cfg=dict(type='BN')))
    x = torch.randn(2, 3, 12, 12)
    expected = randomize(net)(x)
    fused = fuse_conv_bn(copy.deepcopy(net))
    assert relative_l2(fused(x), expected) < 1e-5
    # The network's own norm behind a pair of convolutions stays.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1
    switch_to_deploy(fused)
    assert relative_l2(fused(x), expected) < 1e-5
    assert not find_layers(fused)


def test_timm():
    net = VanillaNet(TINY)
    for name, module in net.named_modules():
        init_weights_vit_timm(module, name)
    timm.models.convnext._init_weights(net)
    efficientnet_init_weights(net)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(
            dict(
                type='WithDeepTraining',
                model=dict(type='TIMMBackbone', model_name='resnet10t',
                           features_only=True),
                act_cfg=dict(type='SeriesActivation', act_num=1),
                input_shape=(3, 32, 32)))
    backbone.init_weights()
    randomize(backbone)
    x = torch.randn(2, 3, 32, 32)
    expected = backbone(x)[-1]
    merged = timm.utils.reparameterize_model(backbone)
    assert not find_layers(merged)
    assert relative_l2(merged(x)[-1], expected) < 1e-5


class FirstOutput(nn.Module):

    def __init__(self, net):
        super().__init__()
        self.network = net

    def forward(self, x):
        return self.network(x)[0]


@pytest.mark.filterwarnings('ignore')
def test_quantization():
    net = network()
    net.switch_to_deploy()
    net = FirstOutput(net).eval()
    x = torch.rand(8, 3, 64, 64)
    expected = net(x)
    mapping = QConfigMapping().set_global(get_default_qconfig('x86'))
    net = prepare_fx(net, mapping, (x, ))
    net(x)
    net = convert_fx(net)
    convs = [m for m in net.modules() if 'Conv' in type(m).__name__]
    assert len(convs) == 8
    assert all('quantized' in type(m).__module__ for m in convs)
    assert relative_l2(net(x), expected) < 0.2


def test_a_shared_layer_stays_shared():
    conv = DeepTrainingConv2d(3, 3, 1)
    net = nn.ModuleDict(dict(a=conv, b=nn.Sequential(conv)))
    assert switch_to_deploy(net) == 1
    assert net['a'] is net['b'][0] and type(net['a']) is nn.Conv2d
