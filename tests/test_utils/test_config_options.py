# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmpretrain.models import ImageClassifier
from tiny import tiny_cfg

from mmvanilla.reparam.retrofit import build_with_deep_training
from mmvanilla.utils.config_options import (
    apply_cfg_options,
    scope_name,
    type_name,
)
from mmvanilla.utils.errors import UserError


@pytest.mark.parametrize('key, near', [
    ('trian_cfg.max_epochs', 'train_cfg'),
    ('resum', 'resume'),
    ('train_cfg.max_epocs', 'train_cfg.max_epochs'),
    ('model.backbone.act_nun', 'model.backbone.act_num'),
    ('train_dataloader.num_worker', 'train_dataloader.num_workers'),
    ('train_dataloader.dataset.indces', 'train_dataloader.dataset.indices'),
    ('custom_hooks.0.decay_epoch', 'custom_hooks.0.decay_epochs'),
    ('default_hooks.checkpoint.save_bst', 'default_hooks.checkpoint.save_bes'),
    ('val_evaluator.topkk', 'val_evaluator.topk'),
])
def test_unknown_keys_name_the_nearest(key, near):
    cfg = tiny_cfg('unused')
    with pytest.raises(UserError, match=f'{key}: .*did you mean {near}'):
        apply_cfg_options(cfg, {key: 1})
    apply_cfg_options(cfg, {key: 1}, allow_new_keys=True)


@pytest.mark.parametrize('key', [
    'load_from',
    'model.backbone.act_num',  # an argument that the config leaves out
    'train_cfg.val_interval',
    'train_dataloader.num_batch_per_epoch',
    'train_dataloader.prefetch_factor',
    'optim_wrapper.accumulative_counts',
    'optim_wrapper.clip_grad.max_norm',
    'randomness.deterministic',
    'custom_hooks.0.decay_iters',
    'val_cfg.fp16',
])
def test_arguments_may_be_added(key):
    cfg = tiny_cfg('unused')
    apply_cfg_options(cfg, {key: 1})
    assert '1' in str(cfg) and key.split('.')[-1] in cfg.pretty_text


def test_entries_of_lists():
    cfg = tiny_cfg('unused')
    apply_cfg_options(cfg, {'custom_hooks.0.decay_epochs': 7})
    assert cfg.custom_hooks[0].decay_epochs == 7
    for key in ('custom_hooks.5.x', 'custom_hooks.x'):
        with pytest.raises(UserError, match='custom_hooks is a list of 1'):
            apply_cfg_options(cfg, {key: 1})


def test_type_name():
    assert type_name(dict(type='mmpretrain.EMAHook')) == 'EMAHook'
    assert type_name(dict(type=Hook)) == type_name(Hook) == 'Hook'
    assert type_name({}) == ''


@pytest.mark.parametrize('cfg, scope', [
    (dict(default_scope='mmdet', model=dict(type=ImageClassifier)), 'mmdet'),
    (dict(default_scope=None, model=dict(type=ImageClassifier)),
     'mmpretrain'),
    (dict(model=dict(type='mmseg.EncoderDecoder')), 'mmseg'),
    (dict(model=dict(type='RetinaNet')), 'mmpretrain'),
    (dict(model=dict(
        type=build_with_deep_training, model=dict(type='mmdet.RetinaNet'))),
     'mmdet'),
    (dict(model=dict(type=Hook)), 'mmpretrain'),
    (dict(), 'mmpretrain'),
])
def test_scope_name(cfg, scope):
    assert scope_name(Config(cfg)) == scope
