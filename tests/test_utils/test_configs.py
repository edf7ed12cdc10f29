# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmpretrain.models import ImageClassifier
from tiny import DIGITS

from mmvanilla.utils.cfg_options import parse_cfg_options
from mmvanilla.utils.configs import (
    build_model,
    missing_data,
    read_config,
    scope_name,
    type_name,
)
from mmvanilla.utils.errors import UserError


@pytest.mark.parametrize('text, message', [
    ('x = 1 / 0', 'ZeroDivisionError: division by zero'),
    ("x = '", 'SyntaxError: '),
    ("_base_ = './nothing.py'", 'nothing.py'),
    ("custom_imports = dict(imports=['nothing'], allow_failed_imports=False)",
     'ImportError: Failed to import nothing'),
    ('with read_base():\n    from .nothing import *', 'nothing.py not found!'),
])
def test_configs_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(str(path))
    assert str(error.value).startswith(f'cannot read {path} as a config: ')
    assert message in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(UserError, match='no config at .*a.py'):
        read_config(str(tmp_path / 'a.py'))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_a_toolbox_that_is_missing(tmp_path, monkeypatch, scope):
    (tmp_path / 'a.py').write_text(f"default_scope = '{scope}'")
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=f'{scope} is not installed'):
        read_config(str(tmp_path / 'a.py'))


def test_cfg_options():
    options = parse_cfg_options([
        'train_cfg.max_epochs=7', 'custom_hooks.0.decay_epochs=3',
        'load_from=a.pth', 'model.backbone.arch.strides=[1,2]'
    ])
    cfg = read_config(str(DIGITS), options)
    assert cfg.train_cfg.max_epochs == 7 and cfg.load_from == 'a.pth'
    assert cfg.custom_hooks[0].decay_epochs == 3
    assert cfg.model.backbone.arch.strides == [1, 2]
    assert parse_cfg_options(None) == {}
    for pair in 'resume', '=1', 'a..b=1', 'a =1':
        with pytest.raises(UserError, match='takes KEY=VALUE'):
            parse_cfg_options([pair])


def test_type_name():
    assert type_name(dict(type='mmpretrain.EMAHook')) == 'EMAHook'
    assert type_name(dict(type=Hook)) == type_name(Hook) == 'Hook'
    assert type_name({}) == ''


@pytest.mark.parametrize('cfg, scope', [
    (dict(default_scope='mmdet', model=dict(type=ImageClassifier)), 'mmdet'),
    (dict(default_scope=None, model=dict(type=ImageClassifier)),
     'mmpretrain'),
    (dict(model=dict(type='mmseg.EncoderDecoder')), 'mmseg'),
    (dict(model=dict(
        type='WithDeepTraining', model=dict(type='mmdet.RetinaNet'))),
     'mmdet'),
    (dict(model=dict(type=Hook)), 'mmpretrain'),
    (dict(), 'mmpretrain'),
])
def test_scope_name(cfg, scope):
    assert scope_name(Config(cfg)) == scope


@pytest.mark.parametrize('dataset, holds', [
    (dict(type='ImageNet', split='train'),
     'train, with one folder of images for each class'),
    (dict(type='mmpretrain.CustomDataset', data_prefix='photos'),
     'photos, with one folder of images for each class'),
    (dict(
        type='RepeatDataset',
        dataset=dict(
            type='CocoDataset', ann_file='a.json',
            data_prefix=dict(img='val/'))), 'val/ and a.json'),
    (dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='ADE20KDataset',
                data_prefix=dict(img_path='images', seg_map_path='maps'))
        ]), 'images and maps'),
])
def test_missing_data(dataset, holds, tmp_path):
    node = dataset.get('dataset') or dataset.get('datasets', [dataset])[0]
    node['data_root'] = str(tmp_path)
    assert missing_data(dataset) == (
        f'no data for {node["type"].split(".")[-1]}: looked for the folder '
        f'{tmp_path}, which must hold {holds}')
    for part in holds.split(',')[0].split(' and '):
        (tmp_path / part).mkdir()
    assert missing_data(dataset) is None


def test_other_data_sets_are_left_to_the_toolbox(tmp_path):
    assert missing_data(
        dict(type='CUB', data_root=str(tmp_path / 'none'))) is None


def test_data_preprocessor_at_the_top_level():
    """Where mmengine's runner looks, and configs of ImageNet have it."""
    cfg = read_config(
        str(DIGITS.parent / 'vanillanet-6_8xb128_in1k.py'),
        dict(model=dict(
            backbone=dict(
                arch=dict(dims=[4, 8, 8], strides=[2, 1], _delete_=True)),
            head=dict(in_channels=8))))
    mean = build_model(cfg).data_preprocessor.mean
    assert mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    cfg.model.backbone.type = 'VanilaNet'
    with pytest.raises(UserError, match='VanilaNet is not a model'):
        build_model(cfg)
