# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Three forms of one network: same outputs, and each loads the earlier."""
import copy
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
from golden import relative_l2
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_state_dict
from mmpretrain.models import ImageClassifier
from narrow import NARROW_ARCHS, TINY, randomize
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


def vanillanet(arch=TINY, form: str = 'train', **kwargs) -> ImageClassifier:
    return ImageClassifier(
        dict(type='VanillaNet', arch=arch, **kwargs, **FORMS[form]),
        head=dict(type='VanillaNetHead', num_classes=7,
                  in_channels=arch['dims'][-1], **FORMS[form]))


def plain(form: str = 'train', **conv_cfg) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.GELU())
    add_deep_training(
        network, conv_cfg=dict(type='DeepTrainingConv2d', **conv_cfg),
        act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=(3, 32, 32), **FORMS[form])
    return network


NETWORKS = {
    'VanillaNet': partial(vanillanet, NARROW_ARCHS['13-x1.5-ada']),
    'plain': plain,
    'plain with two norms': partial(
        plain, post_norm=True, act_cfg=dict(type='PReLU')),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_and_loading_of_each_form(name):
    build = NETWORKS[name]
    network = randomize(build())
    x = torch.rand(2, 3, 64, 64)
    expected = copy.deepcopy(network).double()(x.double())
    states = dict(train=network.state_dict())
    for form, switch in SWITCH.items():
        assert switch(network) > 0
        assert switch(network) == 0
        assert relative_l2(network(x), expected) < 1e-5
        states[form] = network.state_dict()
        # A built network of this form loads this form and the earlier.
        built = build(form=form)
        assert ([type(m) for m in built.modules()]
                == [type(m) for m in network.modules()])
        for state in states.values():
            randomize(built)
            built.load_state_dict(state, strict=True)
            for key, value in built.state_dict().items():
                assert torch.equal(value, states[form][key]), key
    assert not find_layers(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('source, target, message', [
    ('deploy', 'train', 'stem.*build.*deploy=True'),
    ('deploy', 'finetune', 'stem.*build.*deploy=True'),
    ('finetune', 'train', 'stem.*build.*deep_training=False'),
    ('train', 'finetune', 'stages.1.conv".*is 0.9999999, not'),
    ('train', 'deploy', 'stages.1.conv".*is 0.9999999, not')])
def test_another_form_or_lambda_is_refused(load, source, target, message):
    network = vanillanet(form=source)
    set_lam(network.backbone.stages[1], 0.9999999)
    with pytest.raises(RuntimeError, match=message):
        load(vanillanet(form=target), network.state_dict(), strict=False)


@pytest.mark.parametrize('form', FORMS)
def test_loading_survives_copies(form):
    source = randomize(vanillanet())
    x = torch.rand(2, 3, 32, 32)
    expected = source(x)
    network = randomize(vanillanet(form=form), seed=1)
    for copied in (copy.deepcopy(network),
                   pickle.loads(pickle.dumps(network)),
                   ExponentialMovingAverage(network).module):
        copied.load_state_dict(source.state_dict(), strict=True)
        assert relative_l2(copied.eval()(x), expected) < 1e-5
    # The one that was copied is as it was.
    assert relative_l2(network(x), expected) > 1e-2


@pytest.mark.parametrize('form', ['finetune', 'deploy'])
def test_entries_that_are_missing_or_do_not_fit(form):
    network, whole = vanillanet(form=form), vanillanet().state_dict()
    for key in ('conv.norm2.running_var', 'conv.conv1.bias',
                'act.conv.weight'):
        state = dict(whole)
        del state[f'backbone.stages.1.{key}']
        with pytest.raises(RuntimeError, match='stages.1'):
            network.load_state_dict(state, strict=True)
    whole.update({'head.classifier.conv2.weight': torch.rand(14, 7, 1, 1),
                  'head.classifier.conv2.bias': torch.rand(14)})
    with pytest.raises(RuntimeError, match='head.classifier.weight'):
        network.load_state_dict(whole, strict=True)


@pytest.mark.parametrize('form', FORMS)
def test_arguments_hold_in_each_form(form):
    kwargs = dict(frozen_stages=1, norm_eval=True)
    switched = randomize(vanillanet(**kwargs))
    built = vanillanet(form=form, **kwargs)
    built.load_state_dict(switched.state_dict())
    if form != 'train':
        SWITCH[form](switched)
    for network in (built, switched):
        network.train()
        for i, stage in enumerate([network.backbone.stem,
                                   *network.backbone.stages]):
            assert stage.training == (i > 1)
            assert all(p.requires_grad == (i > 1) for p in stage.parameters())
        norms = [m for m in network.backbone.modules()
                 if isinstance(m, nn.BatchNorm2d)]
        assert not any(norm.training for norm in norms)
        assert bool(norms) == (form != 'deploy')


def test_all_or_none():
    network, x = randomize(vanillanet()), torch.rand(2, 3, 32, 32)
    set_lam(network.head, 0.5)
    before = str(network)
    for switch in SWITCH.values():
        with pytest.raises(RuntimeError, match='"head.classifier".*is 0.5'):
            switch(network)
    assert str(network) == before
    set_lam(network, 1)
    assert switch_to_finetune(network.backbone) == 4
    assert isinstance(network.backbone.stem.conv, DeepTrainingConv2d)
    expected = network(x)
    # What mmpretrain's own reparameterize_model.py writes.
    assert network.backbone.switch_to_deploy() == 8
    assert network.backbone.deploy and not network.head.deploy
    shipped = vanillanet(form='deploy').eval()
    shipped.load_state_dict(network.state_dict(), strict=True)
    assert relative_l2(shipped(x), expected) < 1e-5


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
