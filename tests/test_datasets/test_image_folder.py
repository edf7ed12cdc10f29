# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import logging
import shutil

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from photos import BROKEN, CLASSES, write_photos
from PIL import Image

from mmvanilla.datasets import ImageFolderDataset
from mmvanilla.datasets.image_folder import read_split, unreadable
from mmvanilla.utils.errors import UserError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=16),
    dict(type='PackInputs'),
]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('images') / 'photos'
    write_photos(root, per_class=10)
    return root


def build(root, split, **kwargs):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageFolderDataset(
            str(root), split, dict(classes=CLASSES), pipeline=PIPELINE,
            **kwargs)


def test_a_fifth_of_each_class_is_held_out_for_good(photos, tmp_path):
    train, val = read_split(photos, 'train'), read_split(photos, 'val')
    for name in CLASSES:
        files = sorted(f'{name}/{p.name}' for p in (photos / name).iterdir())
        assert sorted(train[name] + val[name]) == files
        assert len(val[name]) == 2
    # Not the same ones with another seed.
    assert read_split(photos, 'val', seed=1) != val
    # Whatever is added, an image stays where it is, but for the one or so by
    # which the fifth of it grows or shrinks.
    more = tmp_path / 'photos'
    shutil.copytree(photos, more)
    for i in range(5):
        Image.new('RGB', (8, 8)).save(more / 'dots' / f'aa{i}.png')
    old = set(val['dots'])
    assert len(old & set(read_split(more, 'val')['dots'])) >= len(old) - 1


def test_images_in_odd_formats_are_readable(photos):
    images = [p.relative_to(photos).as_posix() for p in photos.rglob('*.*')]
    assert {Image.open(photos / x).mode for x in images if x != BROKEN} == {
        'RGB', 'L', 'RGBA', 'CMYK'}
    assert unreadable(photos, images) == [BROKEN]


def test_labels_are_those_of_the_folders(photos):
    for split, count in (('train', 33), ('val', 8)):
        dataset = build(photos, split)
        assert len(dataset) == count
        assert dataset.metainfo['classes'] == CLASSES
        for i in range(count):
            info = dataset.get_data_info(i)
            assert f'/{CLASSES[info["gt_label"]]}/' in info['img_path']
    with pytest.raises(UserError, match='holds the class checks, which is'):
        ImageFolderDataset(str(photos), 'val', dict(classes=['dots']))
    with pytest.raises(UserError, match='no folder .*nowhere'):
        build(photos.parent / 'nowhere', 'train')


def test_an_unreadable_image_in_training(photos):
    seed = next(s for s in range(20)
                if BROKEN in read_split(photos, 'train', s)['checks'])
    dataset = build(photos, 'train', seed=seed)
    broken = next(i for i in range(len(dataset))
                  if dataset.get_data_info(i)['img_path'].endswith(BROKEN))
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.handlers.append(handler)
    try:
        for _ in range(3):
            assert dataset[broken]['inputs'].shape == (3, 16, 16)
    finally:
        logger.handlers.remove(handler)
    assert [r.getMessage() for r in records] == [
        f'cannot read the image {photos / BROKEN}: another one is used '
        'instead'
    ]
    skipping = build(photos, 'train', seed=seed, skip=[BROKEN])
    assert len(skipping) == len(dataset) - 1


def test_an_unreadable_image_in_validation(photos):
    seed = next(s for s in range(20)
                if BROKEN in read_split(photos, 'val', s)['checks'])
    dataset = build(photos, 'val', seed=seed)
    with pytest.raises(UserError) as error:
        list(map(dataset.__getitem__, range(len(dataset))))
    assert str(error.value) == (
        f'cannot read the image {photos / BROKEN}: remove it, or let '
        '--check-images find all such images and leave them out')
