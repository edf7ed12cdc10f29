# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from golden import WIDTHS, load, random_authors_weights, same
from mmpretrain.registry import MODELS

from mmvanilla.checkpoints import (
    PUBLISHED,
    describe,
    from_authors,
    to_authors,
)
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError


def test_lambda_is_one_and_must_be():
    theirs = load('plain')['state_dict']
    ours = from_authors(theirs)
    # As DDP saves it.
    assert same(ours, from_authors(
        {f'module.{k}': v for k, v in theirs.items()}))
    lams = [k for k in ours if k.endswith('.lam')]
    assert len(lams) == 6  # the stem, four stages, the head
    assert all(ours[k] == 1 for k in lams)
    for value, found in [(torch.tensor(0.5), f'{lams[1]} is 0.5'),
                         (torch.ones(2), f'mismatched: {lams[1]}')]:
        with pytest.raises(UserError, match=found):
            to_authors({**ours, lams[1]: value})


def test_published_names():
    assert len(PUBLISHED) == 14
    assert {v['arch'] for v in PUBLISHED.values()} == set(
        VanillaNet.arch_settings)
    dims = [128 * d for d in WIDTHS['13']]
    found = describe(from_authors(random_authors_weights(dims, act_num=4)))
    assert found == dict(
        type='ImageClassifier',
        backbone=dict(PUBLISHED['vanillanet_13_act_num_4_kd_pretrain'],
                      type='VanillaNet', in_channels=3, deploy=False),
        head=dict(type='VanillaNetHead', num_classes=1000,
                  in_channels=dims[-1], deploy=False))
    # The rule for strides where the widths are none of these.
    for setting in VanillaNet.arch_settings.values():
        dims = setting['dims']
        assert list(setting['strides']) == [
            1 + (b > a) for a, b in zip(dims, dims[1:])]


def test_wrong_architecture():
    theirs = load('plain')['state_dict']
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    for wrong, found in [
        (resnet, 'conv1.weight is not an entry'),
        ({k: v for k, v in theirs.items() if k != 'stages.2.act.weight'},
         'backbone.stages.2.act.conv.weight'),
        ({k: v for k, v in theirs.items() if not k.startswith('cls')},
         'head.classifier'),
        ({**theirs, 'stem1.0.weight': torch.tensor(1.)}, 'stem'),
        ({**theirs, 'stages.1.conv1.0.bias': torch.ones(7)},
         'backbone.stages.1.conv.conv1.bias'),
        ({**theirs, 'stages.7.act.weight': torch.ones(8, 1, 7, 7)},
         'backbone.stages.7.act.conv.weight'),
    ]:
        with pytest.raises(UserError, match=found):
            from_authors(wrong)
    ours = from_authors(theirs)
    for wrong in ({**ours, 'other.weight': torch.ones(1)},
                  {**ours, 'backbone.other.weight': torch.ones(1)}):
        with pytest.raises(UserError, match='unexpected .*other.weight'):
            to_authors(wrong)
