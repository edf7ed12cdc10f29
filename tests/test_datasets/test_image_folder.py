# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import logging
import shutil

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from photos import BROKEN, CLASSES, write_photos

from mmvanilla.datasets import ImageFolderDataset
from mmvanilla.datasets.image_files import find_unreadable
from mmvanilla.datasets.image_folder import read_splits
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'), per_class=10)


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
    # The others are in RGB, L, RGBA and CMYK.
    images = [p.relative_to(photos).as_posix() for p in photos.rglob('*.*')]
    for check_all in (True, False):
        assert find_unreadable(photos, images, check_all)[0] == {BROKEN}

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
