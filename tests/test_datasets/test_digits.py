# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import sys

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
    digits = load_digits()
    items = [*train.load_data_list(), *val.load_data_list()]
    assert sorted(x['sample_idx'] for x in items) == list(range(1797))
    for item in items:
        index, image = item['sample_idx'], item['img']
        assert image.shape == (8, 8, 1) and image.dtype == np.uint8
        assert abs(
            image[..., 0] / 255 * 16 - digits.images[index]).max() < 0.05
        assert item['gt_label'] == digits.target[index]
    # Held out from each class alike.
    counts = np.bincount(val.get_gt_labels())
    assert counts.min() >= 34 and counts.max() <= 36


def test_registered_with_pipeline():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(dict(
            type='DigitsDataset', split='val', pipeline=[
                dict(type='Resize', scale=32), dict(type='PackInputs')]))
    sample = dataset[0]
    assert sample['inputs'].shape == (1, 32, 32)
    assert sample['data_samples'].gt_label.item() == dataset.get_cat_ids(0)[0]


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="must be 'train' or 'val', but got"):
        DigitsDataset('test')
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(UserError, match='pip install scikit-learn'):
        DigitsDataset('val')
