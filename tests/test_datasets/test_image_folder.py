# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import logging
import os
import shutil
import unicodedata
from collections import Counter

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from photos import BROKEN, CLASSES, write_images

from mmvanilla.datasets import ImageFolderDataset
from mmvanilla.datasets.image_folder import find_splits, read_splits
from mmvanilla.utils.errors import UserError


def build(root, split, classes=CLASSES, **kwargs):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageFolderDataset(
            str(root), split, dict(classes=classes), pipeline=[
                dict(type='LoadImageFromFile'), dict(type='Resize', scale=16),
                dict(type='PackInputs')], **kwargs)


def test_a_fifth_of_each_class_is_held_out_for_good(photos, tmp_path):
    train, val = read_splits(photos).values()
    for name in CLASSES:
        files = sorted(f'{name}/{p.name}' for p in (photos / name).iterdir())
        assert sorted(train[name] + val[name]) == files
        assert len(val[name]) == 2
    # Not the same ones with another seed.
    assert read_splits(photos, seed=1)['val'] != val
    # Whatever is added, an image stays where it is, but for the one or so by
    # which the fifth of it grows or shrinks.
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    for i in range(5):
        shutil.copy(photos / BROKEN, tmp_path / 'dots' / f'aa{i}.png')
    assert {*val['dots']} & {*read_splits(tmp_path)['val']['dots']}


def test_labels_are_those_of_the_folders(photos):
    for split, count in (('train', 33), ('val', 8)):
        dataset = build(photos, split)
        assert len(dataset) == count
        for i in range(count):
            info = dataset.get_data_info(i)
            assert f'/{CLASSES[info["gt_label"]]}/' in info['img_path']
    for args, message in [
        ((photos, 'val', ['dots']), 'holds the class .*, which is not one'),
        ((photos / 'nowhere', 'train'), 'no folder .*nowhere'),
        ((photos, 'test'), "must be 'train' or 'val', but got 'test'"),
    ]:
        with pytest.raises(UserError, match=message):
            build(*args)


def test_unreadable_images(photos):
    train, val = (build(photos, split, seed=next(
        s for s in range(20)
        if BROKEN in read_splits(photos, s)[split]['checks']))
        for split in ('train', 'val'))
    message = (f'cannot read the image {photos / BROKEN}: OpenCV cannot '
               'decode it; ')
    with pytest.raises(UserError, match=f'{message}remove it, or let --check'):
        list(map(val.__getitem__, range(len(val))))
    broken = next(i for i in range(len(train))
                  if train.get_data_info(i)['img_path'].endswith(BROKEN))
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.handlers.append(handler)
    try:
        for _ in range(3):
            assert train[broken]['inputs'].shape == (3, 16, 16)
    finally:
        logger.handlers.remove(handler)
    assert [r.getMessage() for r in records] == [
        f'{message}another one is used instead']
    skipping = build(photos, 'train', seed=train.seed, skip=[BROKEN])
    assert len(skipping) == len(train) - 1


@pytest.mark.parametrize('folders, splits', [
    ('Training/a VALIDATION/a', dict(train='Training', val='VALIDATION')),
    ('train/a valid/a test/a', dict(train='train', val='valid', test='test')),
    ('training_set test_set', dict(train='training_set', test='test_set')),
    ('plants-train2020/x plants-val2020/x other',
     dict(train='plants-train2020', val='plants-val2020')),
    ('train/x bus car', dict(train='train')),
    ('train bus', dict(train='train')),
    ('train bus car', {}), ('Test ant bee', {}),
    ('train_station lake sea', {}), ('trains vale contest', {}),
    ('train val test', dict(train='train', val='val', test='test')),
])
def test_which_folders_are_splits(tmp_path, folders, splits):
    for name in folders.split():
        (tmp_path / name).mkdir(parents=True)
    assert find_splits(tmp_path) == {k: [v] for k, v in splits.items()}


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path, *(
        f'{split}/{name}/1.png' for split in ('Train', 'val')
        for name in ('bus', 'train', '.git', '__MACOSX')))
    assert read_splits(tmp_path) == {
        x.lower(): {name: [f'{x}/{name}/1.png'] for name in ('bus', 'train')}
        for x in ('Train', 'val')}


def test_each_file_is_found_once(tmp_path):
    write_images(tmp_path, 'train/a/1.png', 'train/a/x/2.png', 'train/b/3.png',
                 'val/a/4.png', 'val/b/5.png')
    for link, to in {
            'train/a/0.png': '../../val/a/4.png', 'train/a/x/up': '../../..',
            'train/b/self': 'self', 'train/b/6.png': 'nowhere.png',
            'val/b/more': '../../train/a/x'}.items():
        (tmp_path / link).symlink_to(to)
    os.link(tmp_path / 'train/b/3.png', tmp_path / 'val/b/3.png')
    (tmp_path / 'train/b/empty.jpg').touch()
    for name in ('train/a/note.TXT', 'val/a/x.heic', 'val/a/y.HEIC', 'val/z'):
        (tmp_path / name).write_text('x')
    write_images(tmp_path, 'masks/a/1.png')
    others = Counter()
    assert read_splits(tmp_path, others=others) == dict(
        train=dict(a=['train/a/1.png', 'train/a/x/2.png'],
                   b=['train/b/3.png']),
        val=dict(a=['val/a/4.png'], b=['val/b/5.png']))
    assert others == {
        'link to others': 4, 'broken link': 2, 'empty': 1, '.txt': 1,
        '.heic': 2, 'without a suffix': 1, 'folder masks': 1}


def test_names_in_other_encodings(tmp_path):
    mac, others = (unicodedata.normalize(x, 'bébé') for x in ('NFD', 'NFC'))
    assert mac != others
    write_images(tmp_path, f'train/{mac}/1.png', b'train/b/\xb9\xb7.png',
                 f'val/{others}/1.png', f'val/{mac}/2.png', 'val/b/1.png')
    train, val = (build(tmp_path, x, ['b', mac]) for x in ('train', 'val'))
    assert [x['gt_label'] for x in train.load_data_list()] == [0, 1]
    assert [x['gt_label'] for x in val.load_data_list()] == [0, 1, 1]
    assert train[0]['inputs'].shape == (3, 16, 16)  # whose name is no UTF-8
    write_images(tmp_path, b'val/\xb9\xb7/1.png')
    with pytest.raises(UserError, match=r"b'\\xb9\\xb7' is not UTF-8"):
        read_splits(tmp_path)


def test_an_image_that_the_pipeline_fails_for(tmp_path):
    """Say which one it is, before which an epoch may have passed."""
    write_images(tmp_path, 'train/a/1.png', 'val/a/1.png')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = ImageFolderDataset(
            str(tmp_path), 'train', dict(classes=['a', 'b']), pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='NumpyToPIL'),
                dict(type='torchvision/RandomCrop', size=16)])
    with pytest.raises(UserError, match='fails for the image .*train/a/1.png'):
        dataset[0]
