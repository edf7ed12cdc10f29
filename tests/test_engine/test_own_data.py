# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from photos import BROKEN, CLASSES, write_images
from PIL import Image
from tiny import DIGITS, NARROW, ROOT
from yapf.yapflib import yapf_api

from mmvanilla.engine.launch import running
from mmvanilla.engine.own_data import use_data, use_image_folder
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def narrow() -> Config:
    """A recipe with mixup, cutmix and top-5, of a narrow network."""
    cfg = Config.fromfile(
        ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py')
    cfg.model.backbone.arch = NARROW
    cfg.model.head.in_channels = 8
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(
            batch_size=4, num_workers=0, persistent_workers=False)
    return cfg


def datasets(cfg: Config) -> list[list]:
    """What each of the three data sets holds, with its classes."""
    built = [DATASETS.build(cfg[f'{name}_dataloader'].dataset)
             for name in ('train', 'val', 'test')]
    return [[d.metainfo['classes'], *map(d.get_data_info, range(len(d)))]
            for d in built]


def test_the_config_trains_and_is_complete(photos, tmp_path):
    cfg = narrow()
    use_image_folder(cfg, str(photos), check_images=True)
    train, val, test = datasets(cfg)
    assert val == test and train[0] == val[0] == CLASSES
    assert len(train + val) == 42 and BROKEN not in str(train + val)

    # What is written builds the same without --data.
    cfg.dump(tmp_path / 'copy.py')
    copy = Config.fromfile(tmp_path / 'copy.py')
    assert datasets(copy) == [train, val, test]
    model = build_model(copy)
    batch = next(iter(Runner.build_dataloader(copy.train_dataloader, 0)))
    data = model.data_preprocessor(batch, training=True)
    assert torch.isfinite(model(**data, mode='loss')['loss'])
    assert model.head(model.extract_feat(data['inputs'])).shape == (4, 4)


def test_a_grey_network_reads_grey_images(photos):
    cfg = Config.fromfile(DIGITS)
    cfg.train_dataloader.batch_size = 4
    use_image_folder(cfg, str(photos), check_images=True)
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert sample['inputs'].shape == (1, 32, 32)

    cfg = narrow()
    cfg.model.backbone.in_channels = 1
    use_image_folder(cfg, str(photos))
    loader = Runner.build_dataloader(cfg.val_dataloader)
    data = build_model(cfg).data_preprocessor(next(iter(loader)))
    assert data['inputs'].shape == (4, 1, 224, 224)
    assert data['inputs'].abs().max() < 3  # about normal


def test_wrappers_are_kept(photos):
    cfg = narrow()
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=3, dataset=dict(
            type='ClassBalancedDataset', oversample_thr=0.5, dataset=inner))
    cfg.train_dataloader.batch_size = 64  # more than there are images
    use_image_folder(cfg, str(photos), check_images=True)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    # Each class is in a quarter of the images and wanted in a half of them.
    assert len(dataset) == 3 * 2 * len(dataset.dataset.dataset)
    assert dataset[len(dataset) - 1]['inputs'].shape == (3, 224, 224)

    cfg.train_dataloader = dict(batch_size=4, dataset=dict(
        type='ConcatDataset', datasets=[inner, inner]))
    with pytest.raises(UserError, match='train_dataloader has a ConcatData'):
        use_image_folder(cfg, str(photos))


@pytest.mark.parametrize('layout, count', [('val', 10), ('.', 2)])
def test_evaluation_uses_the_classes_of_the_checkpoint(
        photos, tmp_path, layout, count):
    """Also where the folder lacks some of them, and train."""
    checkpoint = str(tmp_path / 'trained.pth')
    torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES)),
                    state_dict=dict(weight=torch.ones(1))), checkpoint)
    root = tmp_path / 'new'
    shutil.copytree(photos / 'rings', root / layout / 'rings')
    cfg = narrow()
    use_image_folder(cfg, str(root), checkpoint)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(dataset) == count
    assert dataset.get_data_info(0)['gt_label'] == CLASSES.index('rings')

    torch.save(dict(weight=torch.ones(1)), checkpoint)
    with pytest.raises(UserError, match='does not hold the names'):
        use_image_folder(cfg, str(root), checkpoint)


@pytest.mark.parametrize('classes, topk', [(5, [1]), (6, [1, 5])])
def test_which_folders_are_classes(tmp_path, classes, topk):
    # One folder called as a split among others, without folders, is a class.
    names = ['ant', 'bee', 'cat', 'dog', 'emu', 'train'][-classes:]
    write_images(tmp_path, *(f'{folder}/{i}.png' for i in range(9)
                             for folder in (*names, '__MACOSX', '.git')))
    cfg = narrow()
    use_image_folder(cfg, str(tmp_path))
    assert datasets(cfg)[0][0] == names
    # Top-5 from six classes on.
    for node in (cfg.val_evaluator, cfg.test_evaluator, cfg.model.head):
        assert list(node.topk) == topk


@pytest.mark.parametrize('files, message', [
    ('a.png', r'must hold two or more folders.*none'),
    ('cat/1.png cat/2.png dog/.1.png emu/1.heic ', 'no image of dog, emu for '
     'train: each class needs one for train and one for val, .* end in .jpg'),
    ('TRAIN/a/1.png Testing/a/1.png', 'both train and val, or neither, but '
     'holds TRAIN, Testing: to hold out a fifth of one of them'),
    ('bus/1.png Test/a/1.png van/1.png', 'holds Test, bus, van: .*if they '),
    ('train/a/1.png Train/a/1.png val/a/1.png', 'but holds Train, train, val'),
    ('photos/cat/1.png photos/dog/1.png', 'holds photos: did you mean .*/pho'),
    ('old/train/cat/1.png old/val/cat/1.png', '/old holds splits: did you '),
    ('cat/train/1.png cat/test/1.png dog/1.png', '/cat holds splits.* above'),
    ('train/1.png val/1.png', 'but holds none; .* left out: 2 in no class'),
    ('train/a/1.png val/b/1.png c/1.png', 'no image of b for train: .*folder'),
    ('train/cat/1.png train/dog/1.png val/cat/1.png val/dog/.1.png',
     'no image of dog for val'),
])
def test_refusals(tmp_path, files, message):
    write_images(tmp_path, *files.split())
    with pytest.raises(UserError, match=message):
        use_image_folder(narrow(), str(tmp_path))


def test_other_refusals(photos):
    with pytest.raises(UserError, match='no folder .*nowhere'):
        use_image_folder(narrow(), 'nowhere')
    with pytest.raises(UserError, match='mmpretrain, mmdet, mmseg, but'):
        use_data(Config(dict(default_scope='mmocr')), str(photos))
    with pytest.raises(UserError, match='--balance is for classification'):
        use_data(Config(dict(default_scope='mmdet', model={})), str(photos),
                 balance=True)
    for scope in ('mmpretrain', 'mmdet', 'mmseg'):
        with pytest.raises(UserError, match='/work is inside of .*/photos'):
            use_data(Config(dict(default_scope=scope, model={},
                                 work_dir=photos / 'work')), str(photos))


def test_what_is_left_out_is_said(photos, tmp_path):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'rings/list.csv').touch()
    deep = np.full((9, 9), 3000, np.uint16)
    Image.fromarray(deep).save(tmp_path / 'dots/deep.png')
    notes = use_image_folder(narrow(), str(tmp_path))
    assert [next(filter(note.count, ('1 .csv', BROKEN, '3000, becomes 11')))
            for note in notes] == ['1 .csv', BROKEN, '3000, becomes 11']

    for path in (tmp_path / 'dots').iterdir():
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(UserError, match='no image of dots .*: .*cut short'):
        use_image_folder(narrow(), str(tmp_path), check_images=True)
    # A pipeline that reads such images is not interfered with.
    cfg = narrow()
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset.pipeline[0].imdecode_backend = 'x'
    assert len(use_image_folder(cfg, str(tmp_path), check_images=True)) == 1


@pytest.mark.parametrize('counts, balanced', [
    # The square root of what is below the half, in whole repetitions.
    ((64, 16, 4), (64, 32, 12)), ((20, 19, 18), (20, 19, 18))])
def test_balance(tmp_path, counts, balanced):
    write_images(tmp_path, *(f'{part}/{name}/{i}.png' for part in (
        'train', 'val') for name, n in zip('abc', counts) for i in range(n)))
    cfg = narrow()
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset)
    note, = use_image_folder(cfg, str(tmp_path), balance=True)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [dataset.get_data_info(i)['gt_label']
              for i in range(len(dataset))]
    assert tuple(map(labels.count, range(3))) == tuple(
        3 * n for n in balanced)
    assert f'become {min(balanced)} to {max(balanced)}' in note
    assert len(datasets(cfg)[1]) == 1 + sum(counts)  # as they are


def test_names_of_many_classes_are_not_laid_out(tmp_path, monkeypatch):
    """By yapf, which takes seconds for 500 of them, for 5000 minutes."""
    write_images(tmp_path, *(f'data/{i:03}/{j}.png' for i in range(150)
                             for j in range(2)))
    cfg = narrow()
    use_image_folder(cfg, str(tmp_path / 'data'))
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    monkeypatch.setattr(yapf_api, 'FormatCode', None)
    with running(cfg, 'short') as (runner, _):
        text = runner.cfg.pretty_text
    copy = Config.fromstring(text, '.py')
    for name in ('train', 'val', 'test'):
        classes = copy[f'{name}_dataloader'].dataset.metainfo.classes
        assert classes == [f'{i:03}' for i in range(150)]
