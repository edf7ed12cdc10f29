# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Tools of others on networks of these layers."""
import copy
import io
import pickle
import sys
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from golden import relative_l2
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from narrow import TINY, randomize
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.vision_transformer import init_weights_vit_timm
from timm.utils import ModelEmaV2
from torch import nn
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


def network(lam: float = 1.0) -> VanillaNet:
    net = randomize(VanillaNet(TINY))
    set_lam(net, lam)
    return net


def lams(net: nn.Module) -> set:
    return {act.lam for act in find_activations(net).values()}


def test_average_of_timm():
    net = network(0.0)
    ema = ModelEmaV2(net, decay=0.5)
    set_lam(net, 1)
    ema.update(net)
    assert lams(ema.module) == {0.5}  # as the weights, in place
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(ema.module(x)[0], network(0.5)(x)[0])
    ema.set(net)
    assert lams(ema.module) == {1.0}


@pytest.mark.parametrize('average', [
    AveragedModel, partial(ExponentialMovingAverage, update_buffers=True)])
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


def test_distributed_checkpoint_and_data_parallel(tmp_path):
    dist.init_process_group(
        'gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        source, target = network(0.3).train(), network(1.0)
        dcp.save(get_model_state_dict(source), checkpoint_id=tmp_path)
        dcp.load(target.state_dict(), checkpoint_id=tmp_path)
        assert lams(target) == {0.3}
        wrapped = DistributedDataParallel(source)
        for _ in range(2):
            wrapped(torch.rand(2, 3, 32, 32))[0].sum().backward()
        assert lams(wrapped) == {0.3}
        assert not [n for n, _ in source.named_buffers() if 'lam' in n]
    finally:
        dist.destroy_process_group()


def test_casts_copies_and_other_devices():
    net = network(0.1)
    with torch.device('meta'):
        built = VanillaNet(TINY)
    set_lam(built, 0.1)
    for other in (copy.deepcopy(net).half(), copy.deepcopy(net).to('meta'),
                  pickle.loads(pickle.dumps(net)),
                  built.to_empty(device='cpu')):
        assert lams(other) == {0.1}
        set_lam(other, 1)
    assert lams(net) == {0.1}


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


def test_deployed_convolutions_unpickle_without_this_package(monkeypatch):
    switched = network()
    switched.switch_to_deploy()
    convs = [switched.stages[0].conv, VanillaNet(TINY, deploy=True).stem.conv,
             copy.deepcopy(switched).stem.conv]
    buffer = io.BytesIO()
    torch.save(convs, buffer)
    assert b'mmvanilla' not in buffer.getvalue()
    for name in [x for x in sys.modules if x.startswith('mmvanilla')]:
        monkeypatch.setitem(sys.modules, name, None)
    buffer.seek(0)
    for conv in torch.load(buffer, weights_only=False):
        assert conv(torch.rand(1, conv.in_channels, 8, 8)).shape[0] == 1


def test_fuse_conv_bn():
    net = randomize(nn.Sequential(
        ConvModule(3, 8, 3, norm_cfg=dict(type='BN'),
                   conv_cfg=dict(type='DeepTrainingConv2d')),
        ConvModule(8, 8, 3, norm_cfg=dict(type='BN'))))
    x = torch.randn(2, 3, 12, 12)
    expected = net(x)
    fused = fuse_conv_bn(net)
    assert relative_l2(fused(x), expected) < 1e-5
    # The network's own norm behind a pair of convolutions stays.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1
    assert switch_to_deploy(fused) == 1
    assert relative_l2(fused(x), expected) < 1e-5


def test_timm():
    net = VanillaNet(TINY)
    for name, module in net.named_modules():
        init_weights_vit_timm(module, name)
    timm.models.convnext._init_weights(net)
    efficientnet_init_weights(net)
    x = torch.randn(2, 3, 32, 32)
    expected = randomize(net)(x)[-1]
    merged = timm.utils.reparameterize_model(net)
    assert not find_layers(merged)
    assert relative_l2(merged(x)[-1], expected) < 1e-5


def test_a_shared_layer_stays_shared():
    conv = DeepTrainingConv2d(3, 3, 1)
    net = nn.ModuleDict(dict(a=conv, b=nn.Sequential(conv)))
    assert switch_to_deploy(net) == 1
    assert net['a'] is net['b'][0] and type(net['a']) is nn.Conv2d
