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
    items = sorted([*train.load_data_list(), *val.load_data_list()],
                   key=lambda item: item['sample_idx'])
    images = np.stack([item['img'] for item in items])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert abs(images[..., 0] / 255 * 16 - digits.images).max() < 0.05
    assert [item['gt_label'] for item in items] == digits.target.tolist()
    # Held out from each class alike.
    counts = np.bincount(val.get_gt_labels())
    assert counts.min() >= 34 and counts.max() <= 36

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        sample = DATASETS.build(dict(
            type='DigitsDataset', split='val', pipeline=[
                dict(type='Resize', scale=32), dict(type='PackInputs')]))[0]
    assert sample['inputs'].shape == (1, 32, 32)
    assert sample['data_samples'].gt_label.item() == val.get_cat_ids(0)[0]


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="must be 'train' or 'val', but got"):
        DigitsDataset('test')
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(UserError, match='pip install scikit-learn'):
        DigitsDataset('val')
