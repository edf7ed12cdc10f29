# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Three forms of one network: same outputs, and each loads the earlier."""
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from golden import relative_l2
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint, load_state_dict
from mmpretrain.models import ImageClassifier
from mmpretrain.models.backbones import ResNet
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
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


def narrow(arch: str) -> dict:
    """A variant's architecture at 1/64 of its width."""
    arch = dict(VanillaNet.arch_settings[arch])
    arch['dims'] = [max(dim // 64, 1) for dim in arch['dims']]
    if 'ada_pool' in arch:
        arch['ada_pool'] = [size // 2 for size in arch['ada_pool']]
    return arch


def vanillanet(arch=TINY, form: str = 'train', **kwargs) -> ImageClassifier:
    kwargs.update(FORMS[form])
    return ImageClassifier(
        dict(type='VanillaNet', arch=arch, **kwargs),
        head=dict(
            type='VanillaNetHead',
            num_classes=7,
            in_channels=arch['dims'][-1],
            **FORMS[form]))


def resnet(form: str = 'train', **conv_cfg) -> nn.Module:
    network = ResNet(18, base_channels=8, stem_channels=8)
    add_deep_training(
        network,
        conv_cfg=dict(type='DeepTrainingConv2d', **conv_cfg),
        act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=(3, 32, 32),
        **FORMS[form])
    return network


NETWORKS = {
    **{f'VanillaNet-{arch}': lambda arch=arch, **kw: vanillanet(
        narrow(arch), **kw) for arch in VanillaNet.arch_settings},
    'ResNet-18': resnet,
    'ResNet-18 with two norms': lambda **kw: resnet(post_norm=True, **kw),
}


def randomize(network: nn.Module) -> nn.Module:
    """Weights that keep the signal's size, statistics other than 0 and 1."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=module.weight[0].numel()**-0.5)
            elif isinstance(module, _BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    network.eval()
    return network


def output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = network(x)
    return out[-1] if isinstance(out, tuple) else out


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-6),
                                        (torch.float32, 1e-5)])
@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_and_loading_of_each_form(name, dtype, tol):
    torch.manual_seed(0)
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
        built = randomize(build(form=form)).to(dtype)
        assert ([type(m) for m in built.modules()]
                == [type(m) for m in network.modules()])
        for state in states.values():
            randomize(built)
            built.load_state_dict(state, strict=True)
            for key, value in built.state_dict().items():
                assert torch.equal(value, states[form][key]), key
    assert not find_layers(network)
    if 'ResNet' not in name:
        assert not any(isinstance(m, _BatchNorm) for m in network.modules())


def mmengine_load(network, state, tmp_path):
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    load_checkpoint(network, str(tmp_path / 'a.pth'))


LOADERS = dict(
    torch=lambda network, state, _: network.load_state_dict(
        state, strict=False),
    mmengine=lambda network, state, _: load_state_dict(network, state),
    file=mmengine_load)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('source, target, argument', [
    ('deploy', 'train', 'deploy=True'),
    ('deploy', 'finetune', 'deploy=True'),
    ('finetune', 'train', 'deep_training=False')])
def test_a_later_form_is_refused(loader, source, target, argument, tmp_path):
    state = vanillanet(form=source).state_dict()
    with pytest.raises(RuntimeError, match=rf'stem.*build.*{argument}'):
        LOADERS[loader](vanillanet(form=target), state, tmp_path)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('target', ['finetune', 'deploy'])
@pytest.mark.parametrize('lam', [0.9999999, 0.0])
def test_another_lambda_is_refused(loader, target, lam, tmp_path):
    state = vanillanet().state_dict()
    key = 'backbone.stages.1.conv.act.lam'
    state[key] = torch.tensor(lam, dtype=torch.float64)
    with pytest.raises(
            RuntimeError, match=rf'"backbone.stages.1.conv".*is {lam!r}, not'):
        LOADERS[loader](vanillanet(form=target), state, tmp_path)


@pytest.mark.parametrize('form', ['finetune', 'deploy'])
def test_pretrained_by_config(form, tmp_path):
    source = randomize(vanillanet())
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'a.pth')
    backbone = VanillaNet(
        TINY,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'a.pth'),
            prefix='backbone.'),
        **FORMS[form])
    backbone.init_weights()
    x = torch.rand(2, 3, 32, 32)
    assert relative_l2(
        output(backbone.eval(), x), output(source.backbone, x)) < 1e-5


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
    expected = output(source, torch.ones(2, 3, 32, 32))
    network = vanillanet()
    if form != 'train':
        SWITCH[form](network)
    for copied in (copy.deepcopy(network),
                   pickle.loads(pickle.dumps(network)),
                   ExponentialMovingAverage(network).module):
        copied.load_state_dict(source.state_dict(), strict=True)
        out = output(copied.eval(), torch.ones(2, 3, 32, 32))
        assert relative_l2(out, expected) < 1e-5
    # The one that was copied is as it was.
    assert relative_l2(
        output(network.eval(), torch.ones(2, 3, 32, 32)), expected) > 1e-2


def test_incomplete_entries_are_reported():
    state = vanillanet().state_dict()
    del state['backbone.stages.1.conv.norm2.running_var']
    for form in ('finetune', 'deploy'):
        with pytest.raises(RuntimeError, match='stages.1.conv'):
            vanillanet(form=form).load_state_dict(state, strict=True)


def test_another_number_of_classes_is_reported():
    state = vanillanet().state_dict()
    for name in ('conv2.weight', 'conv2.bias'):
        key = f'head.classifier.{name}'
        state[key] = torch.cat([state[key], state[key]])
    network = vanillanet(form='finetune')
    with pytest.raises(RuntimeError, match='size mismatch for head.class'):
        network.load_state_dict(state, strict=True)


@pytest.mark.parametrize('form', FORMS)
def test_arguments_hold_in_each_form(form):
    torch.manual_seed(0)
    source = randomize(vanillanet(frozen_stages=1, norm_eval=True))
    for with_cp in (False, True):
        built = vanillanet(
            form=form, frozen_stages=1, norm_eval=True, with_cp=with_cp)
        built.load_state_dict(source.state_dict())
        switched = copy.deepcopy(source)
        if form != 'train':
            SWITCH[form](switched)
        switched.backbone.with_cp = with_cp
        grads = []
        for network in (built, switched):
            network.train()
            stages = [network.backbone.stem, *network.backbone.stages]
            for i, stage in enumerate(stages):
                assert all(p.requires_grad == (i > 1)
                           for p in stage.parameters())
                norms = [m for m in stage.modules()
                         if isinstance(m, _BatchNorm)]
                assert not any(norm.training for norm in norms)
                assert bool(norms) == (form != 'deploy')
            network(torch.ones(2, 3, 32, 32)).square().sum().backward()
            grads.append({n: p.grad for n, p in network.named_parameters()
                          if p.requires_grad})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[0].items():
            assert grad is not None, name
            torch.testing.assert_close(grad, grads[1][name])


def test_all_or_none():
    network = vanillanet()
    set_lam(network.head, 0.5)
    before = str(network)
    for switch in SWITCH.values():
        with pytest.raises(RuntimeError, match='"head.classifier".*is 0.5'):
            switch(network)
    assert str(network) == before


def test_unknown_channels():
    network = nn.Sequential(
        DeepTrainingConv2d(3, 4, 1), nn.PixelShuffle(2), SeriesActivation())
    with pytest.raises(RuntimeError, match='"2": its channels are unknown'):
        switch_to_deploy(network)
    assert isinstance(network[0], DeepTrainingConv2d)


def test_a_shared_layer_stays_shared():
    conv = DeepTrainingConv2d(3, 3, 1)
    network = nn.ModuleDict(dict(a=conv, b=nn.Sequential(conv)))
    assert switch_to_deploy(network) == 1
    assert network['a'] is network['b'][0]
    assert type(network['a']) is nn.Conv2d


def test_hooks_of_a_user_stay():
    conv = DeepTrainingConv2d(3, 4, 1)
    seen = []
    conv.register_forward_hook(lambda module, args, out: seen.append(module))
    conv.switch_to_deploy()
    conv(torch.rand(1, 3, 4, 4))
    assert seen == [conv]


def test_sharded_parameters_are_refused():
    dist.init_process_group(
        'gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = vanillanet()
        fully_shard(network, mesh=init_device_mesh('cpu', (1, )))
        for switch in SWITCH.values():
            with pytest.raises(RuntimeError, match=r'sharded \(FSDP\)'):
                switch(network)
    finally:
        dist.destroy_process_group()
