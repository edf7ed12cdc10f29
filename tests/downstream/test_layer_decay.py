# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from downstream.runs import build, without_pretrained
from mmengine.optim import build_optim_wrapper
from tiny import ROOT
from torch import nn

from mmvanilla.engine import VanillaNetLayerDecayConstructor
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

# facts of the paper's code: two stages a layer, six layers in VanillaNet-13.
LAYER_OF_STAGE = {
    0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4, 8: 5, 9: 5, 10: 6}


def wrapper_cfg(**paramwise):
    return dict(type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
                constructor='mmpretrain.VanillaNetLayerDecayConstructor',
                paramwise_cfg=paramwise)


def model_of(strides, **kwargs) -> nn.Module:
    model = nn.Module()
    model.backbone = VanillaNet(
        dict(dims=[4] * (len(strides) + 1), strides=strides), **kwargs)
    model.head = nn.Conv2d(4, 2, 1)
    return model


def layers(model, **paramwise) -> dict:
    """The layer id of each stage, of the stem (-1) and of the head (None)."""
    optimizer = build_optim_wrapper(model, wrapper_cfg(**paramwise)).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for param in group['params']:
            name = names[id(param)]
            stage = None
            if name.startswith('backbone.stem'):
                stage = -1
            elif name.startswith('backbone.'):
                stage = int(name.split('.')[2])
            assert found.setdefault(stage, group['layer_id']
                                    ) == group['layer_id']
    return found


def test_vanillanet_13_in_mask_rcnn():
    cfg = without_pretrained(
        ROOT / 'configs' / 'detection' /
        'mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco.py')
    model, optim_wrapper = build(cfg)
    group_of = {
        id(param): group
        for group in optim_wrapper.optimizer.param_groups
        for param in group['params']
    }
    seen = set()
    for name, param in model.named_parameters():
        group = group_of.pop(id(param))
        layer = 7
        if name.startswith('backbone.stem.'):
            layer = 0
        elif name.startswith('backbone.stages.'):
            layer = LAYER_OF_STAGE[int(name.split('.')[2])]
        seen.add(layer)
        assert group['layer_id'] == layer, name
        scale = 0.6**(7 - layer)
        assert group['lr_scale'] == pytest.approx(scale)
        assert group['lr'] == pytest.approx(1.3e-4 * scale)
        decays = param.ndim > 1
        assert group['weight_decay'] == (0.05 if decays else 0), name
    assert seen == set(range(8))
    assert not group_of
    # The 4-D weight of a series activation is decayed, its norm is not.
    names = {
        group['weight_decay']: group['param_names']
        for group in optim_wrapper.optimizer.param_groups
        if group['layer_id'] == 6
    }
    assert 'backbone.stages.10.act.conv.weight' in names[0.05]
    assert 'backbone.stages.10.act.norm.weight' in names[0]
    assert 'backbone.stages.10.conv.conv1.bias' in names[0]


@pytest.mark.parametrize('num_stages, given, expected', [
    (1, {}, {0: 1, None: 2}),
    (4, {}, {0: 1, 1: 1, 2: 2, 3: 2, None: 3}),
    (5, {}, {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, None: 4}),
    (6, dict(num_layers=2), {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, None: 3}),
    (2, dict(num_layers=6), {0: 1, 1: 1, None: 7}),
], ids=str)
def test_other_depths(num_stages, given, expected):
    assert layers(model_of([1] * num_stages), decay_rate=0.5, **given) == {
        -1: 0, **expected}


def test_frozen_and_deploy_form():
    for kwargs, expected in ((dict(frozen_stages=1), {1, 2, None}),
                             (dict(deploy=True), {-1, 0, 1, 2, None})):
        assert {*layers(model_of([1] * 3, **kwargs), decay_rate=0.5)
                } == expected


def test_step_sizes_differ():
    model = model_of([1, 1])
    cfg = wrapper_cfg(decay_rate=0.5)
    cfg['optimizer'] = dict(type='SGD', lr=1.0)
    optimizer = build_optim_wrapper(model, cfg).optimizer
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    steps = {k: before[k] - v for k, v in model.named_parameters()}
    for name, scale in [('backbone.stem.conv.conv1.weight', 0.25),
                        ('backbone.stages.1.act.conv.weight', 0.5),
                        ('head.weight', 1.0)]:
        torch.testing.assert_close(
            steps[name], torch.full_like(steps[name], scale))


@pytest.mark.parametrize('paramwise, message', [
    (dict(num_layers=6), 'decay_rate'),
    (dict(decay_rate=0.6, layer_decay=6), 'layer_decay'),
    (dict(decay_rate=0), 'over 0'),
    (dict(decay_rate=0.6, num_layers=0), 'num_layers, over 0'),
])
def test_refuses(paramwise, message):
    with pytest.raises(UserError, match=message):
        build_optim_wrapper(model_of([1]), wrapper_cfg(**paramwise))


def test_refuses_other_models():
    model = nn.Module()
    model.backbone = nn.Conv2d(1, 1, 1)
    with pytest.raises(UserError, match='Conv2d'):
        build_optim_wrapper(model, wrapper_cfg(decay_rate=0.6))
    with pytest.raises(UserError, match='lr'):
        VanillaNetLayerDecayConstructor(
            dict(optimizer=dict(type='SGD')), dict(decay_rate=0.6))
