# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from golden import (
    WIDTHS,
    build_classifier,
    load,
    random_authors_weights,
    same,
)
from mmpretrain.registry import MODELS

from mmvanilla.checkpoints import (
    PUBLISHED,
    describe,
    from_authors,
    to_authors,
)
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

GOLDEN = ['plain', 'act4_deep', 'ada_pool']


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('form', ['train', 'deploy'])
def test_there_and_back(name, form):
    golden = load(name)
    theirs = golden if form == 'train' else golden['deploy']
    theirs = theirs['state_dict']
    ours = from_authors(theirs)
    model = build_classifier(golden, deploy=form == 'deploy')
    # Every entry, lambda included.
    assert set(ours) == set(model.state_dict())
    assert same(to_authors(ours), theirs)
    # Also after the model has had it.
    back = to_authors(model.state_dict())
    assert same({k: back[k] for k in theirs}, theirs)
    assert len(back) == len(theirs)


def test_lambda_is_one_and_must_be():
    ours = from_authors(load('plain')['state_dict'])
    lams = [k for k in ours if k.endswith('.lam')]
    assert len(lams) == 6  # the stem, four stages, the head
    assert all(ours[k] == 1 for k in lams)
    for value, found in [(torch.tensor(0.5), f'{lams[1]} is 0.5'),
                         (torch.ones(2), f'mismatched: {lams[1]}')]:
        with pytest.raises(UserError, match=found):
            to_authors({**ours, lams[1]: value})


def test_prefix_of_ddp():
    theirs = load('plain')['state_dict']
    ours = from_authors({f'module.{k}': v for k, v in theirs.items()})
    assert same(ours, from_authors(theirs))


def test_published_names():
    assert len(PUBLISHED) == 14
    assert {v['arch'] for v in PUBLISHED.values()} == set(
        VanillaNet.arch_settings)
    dims = [128 * d for d in WIDTHS['13']]
    ours = from_authors(random_authors_weights(dims, act_num=4))
    found = describe(ours)['backbone']
    # The rule for strides where the widths are none of these.
    for setting in VanillaNet.arch_settings.values():
        dims = setting['dims']
        assert list(setting['strides']) == [
            1 + (b > a) for a, b in zip(dims, dims[1:])]
    assert dict(arch=found['arch'], act_num=found['act_num']
                ) == PUBLISHED['vanillanet_13_act_num_4_kd_pretrain']


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('deploy', [False, True])
def test_other_widths_become_an_arch(name, deploy):
    golden = load(name)
    kwargs = golden['kwargs']
    theirs = golden['deploy'] if deploy else golden
    found = describe(from_authors(theirs['state_dict']))
    assert found['backbone']['arch'] == dict(
        dims=kwargs['dims'], strides=kwargs['strides'])
    assert found['backbone']['act_num'] == kwargs['act_num']
    assert found['backbone']['deploy'] == deploy
    assert found['head']['num_classes'] == kwargs['num_classes']


def test_wrong_architecture():
    theirs = load('plain')['state_dict']
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    with pytest.raises(UserError, match='not the entries .* conv1.weight'):
        from_authors(resnet)
    missing = {k: v for k, v in theirs.items() if k != 'stages.2.act.weight'}
    with pytest.raises(UserError, match='backbone.stages.2.act.conv.weight'):
        from_authors(missing)
    flat = {**theirs, 'stem1.0.weight': torch.tensor(1.)}
    with pytest.raises(UserError, match='stem'):
        from_authors(flat)
    headless = {k: v for k, v in theirs.items() if not k.startswith('cls')}
    with pytest.raises(UserError, match='head.classifier'):
        from_authors(headless)
    shape = {**theirs, 'stages.1.conv1.0.bias': torch.ones(7)}
    with pytest.raises(UserError, match='backbone.stages.1.conv.conv1.bias'):
        from_authors(shape)
    more = {**theirs, 'stages.7.act.weight': torch.ones(8, 1, 7, 7)}
    with pytest.raises(UserError, match='backbone.stages.7.act.conv.weight'):
        from_authors(more)
