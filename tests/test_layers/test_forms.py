# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Three forms of one network: same outputs, and each loads the earlier."""
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from golden import relative_l2
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_state_dict
from mmpretrain.models import ImageClassifier
from narrow import NARROW_ARCHS, randomize
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmvanilla.layers import (
    DeepTrainingConv2d,
    find_layers,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from mmvanilla.models import VanillaNet
from mmvanilla.reparam import add_deep_training

FORMS = dict(
    train=dict(), finetune=dict(deep_training=False), deploy=dict(deploy=True))
SWITCH = dict(finetune=switch_to_finetune, deploy=switch_to_deploy)
TINY = dict(dims=[4, 8, 8, 12], strides=[2, 1, 2])


def vanillanet(arch=TINY, form: str = 'train', **kwargs) -> ImageClassifier:
    kwargs.update(FORMS[form])
    return ImageClassifier(
        dict(type='VanillaNet', arch=arch, **kwargs),
        head=dict(
            type='VanillaNetHead',
            num_classes=7,
            in_channels=arch['dims'][-1],
            **FORMS[form]))


def plain(form: str = 'train', **conv_cfg) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.GELU())
    add_deep_training(
        network,
        conv_cfg=dict(type='DeepTrainingConv2d', **conv_cfg),
        act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=(3, 32, 32),
        **FORMS[form])
    return network


NETWORKS = {
    **{f'VanillaNet-{arch}': lambda arch=arch, **kw: vanillanet(
        NARROW_ARCHS[arch], **kw) for arch in ('6', '13-x1.5-ada')},
    'plain': plain,
    'plain with two norms': lambda **kw: plain(
        post_norm=True, act_cfg=dict(type='PReLU'), **kw),
}


def output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = network(x)
    return out[-1] if isinstance(out, tuple) else out


@pytest.mark.parametrize('name, dtype, tol', [
    ('VanillaNet-6', torch.float64, 1e-12),
    *((name, torch.float32, 1e-5) for name in NETWORKS)])
def test_outputs_and_loading_of_each_form(name, dtype, tol):
    build = NETWORKS[name]
    network = randomize(build()).to(dtype)
    x = torch.rand(2, 3, 64, 64, dtype=dtype)
    expected = output(copy.deepcopy(network).double(), x.double())
    states = dict(train=network.state_dict())
    for form, switch in SWITCH.items():
        assert switch(network) > 0
        assert switch(network) == 0
        assert relative_l2(output(network, x), expected) < tol
        states[form] = network.state_dict()
        # A built network of this form loads this form and the earlier.
        built = build(form=form).to(dtype)
        assert ([type(m) for m in built.modules()]
                == [type(m) for m in network.modules()])
        for state in states.values():
            randomize(built)
            built.load_state_dict(state, strict=True)
            for key, value in built.state_dict().items():
                assert torch.equal(value, states[form][key]), key
    assert not find_layers(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


LOADERS = dict(
    torch=lambda network, state: network.load_state_dict(state, strict=False),
    mmengine=load_state_dict)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('source, target, argument', [
    ('deploy', 'train', 'deploy=True'),
    ('deploy', 'finetune', 'deploy=True'),
    ('finetune', 'train', 'deep_training=False')])
def test_a_later_form_is_refused(loader, source, target, argument):
    state = vanillanet(form=source).state_dict()
    with pytest.raises(RuntimeError, match=rf'stem.*build.*{argument}'):
        LOADERS[loader](vanillanet(form=target), state)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('target', ['finetune', 'deploy'])
def test_another_lambda_is_refused(loader, target):
    state = vanillanet().state_dict()
    key = 'backbone.stages.1.conv.act.lam'
    state[key] = torch.tensor(0.9999999, dtype=torch.float64)
    with pytest.raises(
            RuntimeError,
            match='"backbone.stages.1.conv".*is 0.9999999, not'):
        LOADERS[loader](vanillanet(form=target), state)


def test_backbone_merged_and_head_not():
    """What mmpretrain's own reparameterize_model.py writes."""
    source = randomize(vanillanet())
    x = torch.rand(2, 3, 32, 32)
    expected = output(source, x)
    source.backbone.switch_to_deploy()
    shipped = vanillanet(form='deploy').eval()
    shipped.load_state_dict(source.state_dict(), strict=True)
    assert relative_l2(output(shipped, x), expected) < 1e-5


@pytest.mark.parametrize('form', FORMS)
def test_loading_survives_copies(form):
    source = randomize(vanillanet())
    x = torch.rand(2, 3, 32, 32)
    expected = output(source, x)
    network = randomize(vanillanet(), seed=1)
    if form != 'train':
        SWITCH[form](network)
    for copied in (copy.deepcopy(network),
                   pickle.loads(pickle.dumps(network)),
                   ExponentialMovingAverage(network).module):
        copied.load_state_dict(source.state_dict(), strict=True)
        assert relative_l2(output(copied.eval(), x), expected) < 1e-5
    # The one that was copied is as it was.
    assert relative_l2(output(network, x), expected) > 1e-2


@pytest.mark.parametrize('form', ['finetune', 'deploy'])
@pytest.mark.parametrize('key', [
    'conv.norm2.running_var', 'conv.conv1.bias', 'act.conv.weight'])
def test_incomplete_entries_are_reported(form, key):
    state = vanillanet().state_dict()
    del state[f'backbone.stages.1.{key}']
    with pytest.raises(RuntimeError, match='stages.1'):
        vanillanet(form=form).load_state_dict(state, strict=True)


def test_another_number_of_classes_is_reported():
    state = vanillanet().state_dict()
    for name in ('conv2.weight', 'conv2.bias'):
        key = f'head.classifier.{name}'
        state[key] = torch.cat([state[key], state[key]])
    with pytest.raises(RuntimeError, match='head.classifier.weight'):
        vanillanet(form='finetune').load_state_dict(state, strict=True)


@pytest.mark.parametrize('form', FORMS)
def test_arguments_hold_in_each_form(form):
    source = randomize(vanillanet(frozen_stages=1, norm_eval=True))
    built = vanillanet(form=form, frozen_stages=1, norm_eval=True)
    built.load_state_dict(source.state_dict())
    switched = copy.deepcopy(source)
    if form != 'train':
        SWITCH[form](switched)
    grads = []
    for network in (built, switched):
        network.train()
        stages = [network.backbone.stem, *network.backbone.stages]
        for i, stage in enumerate(stages):
            assert all(p.requires_grad == (i > 1) for p in stage.parameters())
        norms = [m for m in network.backbone.modules()
                 if isinstance(m, nn.BatchNorm2d)]
        assert not any(norm.training for norm in norms)
        assert bool(norms) == (form != 'deploy')
        network(torch.ones(2, 3, 32, 32)).square().sum().backward()
        grads.append({n: p.grad for n, p in network.named_parameters()
                      if p.requires_grad})
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_all_or_none():
    network = vanillanet()
    set_lam(network.head, 0.5)
    before = str(network)
    for switch in SWITCH.values():
        with pytest.raises(RuntimeError, match='"head.classifier".*is 0.5'):
            switch(network)
    assert str(network) == before
    set_lam(network, 1)
    assert switch_to_finetune(network.backbone) == 4
    assert isinstance(network.backbone.stem.conv, DeepTrainingConv2d)
    assert network.backbone.switch_to_deploy() == 8
    assert network.backbone.deploy and not network.head.deploy


def test_sharded_parameters_are_refused():
    dist.init_process_group(
        'gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = VanillaNet(TINY)
        fully_shard(network, mesh=init_device_mesh('cpu', (1, )))
        for switch in SWITCH.values():
            with pytest.raises(RuntimeError, match=r'sharded \(FSDP\)'):
                switch(network)
    finally:
        dist.destroy_process_group()
