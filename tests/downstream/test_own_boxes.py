# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import numpy as np
import onnx
import pytest
import torch
from boxes import CLASSES, LAYOUTS, digests, generate, write
from downstream.runs import CONFIGS, tool
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tiny import ROOT, read

from mmvanilla.checkpoints.read import load_state_dict
from mmvanilla.engine.own_data import use_data
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError

NARROW = f'''
_base_ = '{CONFIGS / "retinanet_shapes.py"}'
train_cfg = dict(max_epochs=8, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4, save_best='auto'))
custom_hooks = [dict(type='mmpretrain.ReparameterizeHook')]
'''


@pytest.fixture
def narrow(tmp_path) -> Config:
    path = tmp_path / 'narrow.py'
    path.write_text(NARROW)
    cfg = read_config(str(path))
    cfg.work_dir = str(tmp_path / 'work')
    return cfg


def samples(cfg: Config, split: str) -> dict:
    """Boxes and labels by the names of the images, as mmdet has them."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    assert list(data.metainfo['classes']) == CLASSES
    infos = map(data.get_data_info, range(len(data)))
    return {x['img_path'].split('/')[-1]: (
        x['width'], x['height'], Image.open(x['img_path']).size, [
            (box['bbox_label'], np.round(box['bbox'], 2).tolist())
            for box in x['instances']]) for x in infos}


def test_three_commands(narrow, tmp_path):
    images = generate(60, 8)
    root = write(tmp_path / 'data', 'yolo', images)
    before, config = digests(root), tmp_path / 'narrow.py'
    work, out = tmp_path / 'work', tmp_path / 'net.pth'
    log = tool('train.py', config, '--data', root, '--work-dir', work,
               cwd=tmp_path)
    assert '17 images have no box, and are background' in log
    checkpoint = work / 'epoch_8.pth'
    tool('reparam.py', config, checkpoint, out, '--data', root, cwd=tmp_path)
    tool('export.py', tmp_path / 'net.py', out, tmp_path / 'net.onnx',
         '--data', root, cwd=tmp_path)
    assert digests(root) == before
    assert list(read(checkpoint)['meta']['dataset_meta']['classes']) == CLASSES
    metadata = str(onnx.load(tmp_path / 'net.onnx').metadata_props)
    assert all(name in metadata for name in CLASSES)
    # The written config is complete.
    assert samples(Config.fromfile(work / 'narrow.py'), 'train').keys() == (
        images['train'].keys())
    # The summary: AP of each class, and not the first of them as the best.
    assert 'AP by class  circle 0.' in log
    assert list(work.glob('best_coco_bbox_mAP_epoch_*.pth'))
    assert Image.open(work / 'predictions.png').width > 500

    # Evaluation has the order of the classes of the checkpoint.
    use_data(narrow, str(root), str(checkpoint))
    labels = root / 'data.yaml'
    labels.write_text(labels.read_text().replace('circle', 'ring'))
    with pytest.raises(UserError, match='has boxes of ring, but the classes'):
        use_data(narrow, str(root), str(checkpoint))


def test_layouts_are_the_same_to_mmdet(narrow, tmp_path):
    found = []
    for layout in LAYOUTS:
        cfg = narrow.copy()
        use_data(cfg, str(write(tmp_path / layout, layout)))
        found.append([samples(cfg, x) for x in ('train', 'val', 'test')])
    assert len(found[0][0]) == 10 and found[0][1] == found[0][2]
    assert all(x == found[0] for x in found)
    assert all(size == (width, height) for split in found[0]
               for width, height, size, _ in split.values())


@pytest.mark.parametrize('name', [
    'retinanet_vanillanet-13', 'mask-rcnn_vanillanet-13',
    'rtmdet_vanillanet-s'])
def test_heads_of_the_configs(tmp_path, name):
    """Each is for the classes; weights of others are left out by name."""
    def narrowed(data: bool) -> Config:
        cfg = read_config(str(
            ROOT / f'configs/detection/{name}_finetune.py'))
        cfg.work_dir = str(tmp_path)
        cfg.model.backbone.update(arch=dict(
            dims=[8, 8, 16, 16, 16], strides=[1, 2, 2, 2]), act_num=2)
        levels = 4 if 'mask' in name else 3
        cfg.model.backbone.out_indices = range(4)[-levels:]
        cfg.model.neck.in_channels = [8, 16, 16, 16][-levels:]
        if data:
            use_data(cfg, str(write(tmp_path / 'data', 'polygons')))
        return cfg

    cfg, model = narrowed(True), build_model(narrowed(False))
    left_out = load_state_dict(
        build_model(cfg), model.state_dict(), 'COCO', start=True)
    assert 'another number of classes' in left_out and 'head' in left_out
    # Both pipelines of RTMDet, and the wrapper that mixes images.
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = cfg.train_dataloader.dataset
        pipelines = [dataset.pipeline, *(
            x.switch_pipeline for x in cfg.custom_hooks
            if x.type == 'PipelineSwitchHook')]
        for pipeline in pipelines:
            data = DATASETS.build(dict(dataset, pipeline=pipeline))
            # Random crops may leave no box of a class in one pass.
            labels = torch.cat([
                data[i % len(data)]['data_samples'].gt_instances.labels
                for i in range(20 * len(data))])
            assert {*labels.tolist()} == {0, 1, 2}


def test_wrappers(narrow, tmp_path):
    loader = narrow.train_dataloader
    loader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(
            type='MultiImageMixDataset', pipeline=[], dataset=loader.dataset))
    use_data(narrow, str(write(tmp_path / 'data', 'roboflow')))
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(DATASETS.build(loader.dataset)) == 20
