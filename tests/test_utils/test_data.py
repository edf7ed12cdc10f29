# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
from tiny import DIGITS

from mmvanilla.utils.building import read_config
from mmvanilla.utils.data import missing_data, real_batches


def test_real_batches_leave_out_what_is_for_workers():
    cfg = read_config(
        str(DIGITS),
        dict(val_dataloader=dict(
            num_workers=2, prefetch_factor=4, persistent_workers=True)))
    assert len(real_batches(cfg, 100)) == 2


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


@pytest.mark.parametrize('name', ['CIFAR10', 'CUB', 'VOC', 'DigitsDataset'])
def test_other_data_sets_are_left_to_the_toolbox(name, tmp_path):
    assert missing_data(
        dict(type=name, data_root=str(tmp_path / 'none'), split='val')) is None


@pytest.mark.parametrize('loader', [None, {}, dict(batch_size=2)])
def test_real_batches_of_a_loader_without_data(loader):
    cfg = read_config(str(DIGITS))
    cfg.val_dataloader = loader
    assert real_batches(cfg, 2) is None
