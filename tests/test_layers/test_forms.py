# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Three forms of one network, and what may not be made or loaded."""
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from golden import relative_l2
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_state_dict
from mmpretrain.models import ImageClassifier
from narrow import TINY, randomize
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmvanilla.layers import (
    DeepTrainingConv2d,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from mmvanilla.models import VanillaNet

FORMS = dict(
    train=dict(), finetune=dict(deep_training=False), deploy=dict(deploy=True))
SWITCH = dict(finetune=switch_to_finetune, deploy=switch_to_deploy)


def vanillanet(form: str = 'train', **kwargs) -> ImageClassifier:
    return ImageClassifier(
        dict(type='VanillaNet', arch=TINY, **kwargs, **FORMS[form]),
        head=dict(type='VanillaNetHead', num_classes=7,
                  in_channels=TINY['dims'][-1], **FORMS[form]))


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
