# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from sklearn.datasets import load_digits

from mmvanilla.datasets import DigitsDataset
from mmvanilla.utils.errors import UserError


def test_splits_hold_every_digit_once():
    train, val = DigitsDataset('train'), DigitsDataset('val')
    assert (len(train), len(val)) == (1442, 355)
    indices = [
        d['sample_idx'] for split in (train, val)
        for d in split.load_data_list()
    ]
    assert sorted(indices) == list(range(1797))
    # Held out from each class alike.
    counts = np.bincount(val.get_gt_labels())
    assert counts.min() >= 34 and counts.max() <= 36


def test_images_and_labels_are_scikit_learns():
    digits = load_digits()
    for item in DigitsDataset('val').load_data_list():
        index = item['sample_idx']
        assert item['img'].shape == (8, 8, 1)
        assert item['img'].dtype == np.uint8
        assert abs(item['img'][..., 0] / 255 * 16 -
                   digits.images[index]).max() < 0.05
        assert item['gt_label'] == digits.target[index]


def test_registered_with_pipeline():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(
            dict(
                type='DigitsDataset',
                split='val',
                pipeline=[
                    dict(type='Resize', scale=32),
                    dict(type='PackInputs')
                ]))
    sample = dataset[0]
    assert sample['inputs'].shape == (1, 32, 32)
    assert dataset.metainfo['classes'] == tuple('0123456789')


def test_wrong_split():
    with pytest.raises(UserError, match="'train' or 'val'.*'test'"):
        DigitsDataset('test')
