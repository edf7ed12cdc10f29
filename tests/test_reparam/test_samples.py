# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import DIGITS

from mmvanilla.reparam.samples import find_samples
from mmvanilla.utils.configs import read_config
from mmvanilla.utils.errors import UserError


@pytest.fixture
def cfg(tmp_path):
    """Two classes of 30 images each, in the order of the classes."""
    for split in ('train', 'val'):
        for label in 'ab':
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(30):
                cv2.imwrite(f'{folder}/{i}.png', np.full((8, 8), i, np.uint8))

    def loader(split, size):
        return dict(
            batch_size=4, num_workers=2, prefetch_factor=4,
            persistent_workers=True,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(
                type='CustomDataset', data_root=str(tmp_path),
                data_prefix=split, pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='Resize', scale=size),
                    dict(type='PackInputs')]))

    return Config(dict(model=dict(), val_dataloader=loader('val', 16),
                       train_dataloader=loader('train', 12)))


def test_spread_over_the_data_set(cfg):
    samples = find_samples(cfg, 12)
    assert str(samples) == '12 real samples of 2 of 2 classes'
    assert not samples.whole and not samples.random
    assert all(len(batch['inputs']) == 1 for batch in samples.batches)
    paths = [[batch['data_samples'][0].img_path for batch in found.batches]
             for found in (samples, find_samples(cfg, 12))]
    assert paths[0] == paths[1] and len(set(paths[0])) == 12
    whole = find_samples(cfg, 100)
    assert whole.whole and len(whole.batches) == 60


def test_training_images_in_the_test_pipeline(cfg):
    dataset = cfg.train_dataloader.dataset
    for wrapped in (
            dataset, dict(type='RepeatDataset', times=2, dataset=dataset),
            dict(type='ConcatDataset', datasets=[dataset, dataset])):
        cfg.train_dataloader.dataset = wrapped
        for test_pipeline, size in ((True, 16), (False, 12)):
            batch, = find_samples(cfg, 1, 'train', test_pipeline).batches
            assert batch['inputs'][0].shape == (3, size, size)
            assert '/train/' in batch['data_samples'][0].img_path


@pytest.mark.parametrize('loader', [None, {}, dict(batch_size=2), 'missing'])
def test_random_images_without_data(cfg, loader):
    if loader == 'missing':
        cfg.val_dataloader.dataset.data_prefix = 'none'
    else:
        cfg.val_dataloader = loader
    a, b = find_samples(cfg, 2), find_samples(cfg, 2)
    assert str(a) == '2 random images' and a.random and a.classes is None
    size = 16 if loader == 'missing' else 224
    for x, y in zip(a.batches, b.batches):
        assert x['inputs'][0].shape == (3, size, size)
        assert torch.equal(x['inputs'][0], y['inputs'][0])


def test_what_cannot_be_read():
    cfg = read_config(str(DIGITS))
    with pytest.raises(UserError, match='must be positive: 0'):
        find_samples(cfg, 0)
    cfg.val_dataloader.dataset.indices = 0
    with pytest.raises(UserError, match='val data'):
        find_samples(cfg, 1)
