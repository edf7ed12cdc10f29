# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from downstream.runs import (
    CONFIGS,
    build,
    data_options,
    one_step,
    without_pretrained,
)
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.structures import InstanceData
from tiny import ROOT, assert_same_weights, run_tool

from mmvanilla.reparam.merge import reparameterize

NAMES = ['retinanet', 'mask-rcnn']
FULL = {
    name: ROOT / 'configs' / 'detection' /
    f'{name}_vanillanet-13_fpn_8xb4-ms-1x_coco.py'
    for name in NAMES
}
GOAL = {'retinanet': ('coco/bbox_mAP_50', 0.7),
        'mask-rcnn': ('coco/segm_mAP_50', 0.6)}


def batch(height: int, width: int, count: int = 1) -> dict:
    """Images with one square on them, and what a detector is told of it."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[8:24, 8:24] = (220, 30, 30)
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, 8:24, 8:24] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(height, width), ori_shape=(height, width),
                      scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8., 24., 24.]]),
            labels=torch.tensor([1]), masks=BitmapMasks(mask, height, width)))
    return dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)] * count,
                data_samples=[sample.clone() for _ in range(count)])


@pytest.mark.parametrize('name', NAMES)
def test_full_size(name):
    result, = one_step(without_pretrained(FULL[name]), batch(64, 64))
    assert result.pred_instances.bboxes.shape[1] == 4



@pytest.mark.parametrize('name', NAMES)
def test_learns_and_merges(runs, name):
    run = runs(name)
    # With the deep training hook or, without any, at 1 all along.
    assert run.lams() == {1.0}
    assert ('lambda:' in run.log) == (name == 'mask-rcnn')
    metric, goal = GOAL[name]
    before, after = run.test(), run.test_merged()
    assert before[metric] >= goal
    assert before.keys() == after.keys()
    for key in before:
        assert round(before[key], 3) == round(after[key], 3), key
    assert run.test('--deploy') == before



def test_layers_in_a_detectors_own_backbone(tmp_path):
    """mmdet's ResNet, changed by mmpretrain's wrapper, trained and merged."""
    cfg = Config.fromfile(CONFIGS / 'retinanet_shapes.py')
    cfg.model.backbone = dict(
        type='mmpretrain.WithDeepTraining',
        model=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8,
                   out_indices=(1, 2, 3)),
        act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=[3, 64, 64])
    cfg.model.neck.in_channels = [16, 32, 64]
    # Instead of the one that knows VanillaNet's layers.
    cfg.optim_wrapper.update(
        constructor='DefaultOptimWrapperConstructor', paramwise_cfg={})
    model, optim_wrapper = build(cfg)
    assert type(model.backbone).__module__.startswith('mmdet.')
    model.init_weights()
    losses = model.train().train_step(batch(64, 64, count=2), optim_wrapper)
    assert torch.isfinite(losses['loss'])
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    cfg.dump(config)
    # Beside that bias, scores as initialized are equal for all images.
    torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)
    torch.save(model.state_dict(), checkpoint)
    report = reparameterize(
        Config.fromfile(config), checkpoint, tmp_path / 'out.pth', samples=2)
    # Each block calls its one ReLU twice, which is skipped.
    assert report.layers == 20 + 1
    assert "type='mmpretrain.WithDeepTraining'" in (
        tmp_path / 'out.py').read_text()



@pytest.mark.parametrize('size', [(32, 32), (33, 47), (65, 127), (40, 101)])
@pytest.mark.parametrize('name', NAMES)
def test_any_size(name, size):
    cfg = Config.fromfile(CONFIGS / f'{name}_shapes.py')
    model, optim_wrapper = build(cfg)
    model.init_weights()
    # Two: at 32 x 32 the last map is one pixel, and a batch norm wants more.
    losses = model.train().train_step(batch(*size, count=2), optim_wrapper)
    assert torch.isfinite(losses['loss'])
    model.eval()
    data = model.data_preprocessor(batch(*size))
    # The toolbox pads to multiples of 32, so every level halves the other.
    height, width = (32 * -(-side // 32) for side in size)
    assert data['inputs'].shape[2:] == (height, width)
    strides = [4, 8, 16, 32][-len(cfg.model.neck.in_channels):]
    feats = model.backbone(data['inputs'])
    assert [f.shape[2:] for f in feats] == [(height // s, width // s)
                                            for s in strides]
    assert len(model.test_step(batch(*size))) == 1






def test_sync_bn():
    cfg = Config.fromfile(CONFIGS / 'retinanet_shapes.py')
    model, _ = build(cfg)
    norms = [
        m for m in convert_sync_batchnorm(model.backbone, 'torch').modules()
        if isinstance(m, torch.nn.SyncBatchNorm)
    ]
    # Three for each stage and the stem; a conversion may lose the eps.
    assert len(norms) == 3 * 5
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize('name', NAMES)
def test_authors_setup(name):
    cfg = Config.fromfile(FULL[name])
    retinanet = name == 'retinanet'
    assert (cfg.model.backbone.act_num, cfg.sync_bn, cfg.model.neck.num_outs,
            cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (
                4, 'torch', 5, 4, 12)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.weight_decay, optimizer.lr) == (
        'AdamW', 0.05, 8e-5 if retinanet else 1.3e-4)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 500)
    assert steps.milestones == ([10, 11] if retinanet else [10, 12])
    resize, = (t for t in cfg.train_dataloader.dataset.pipeline
               if 'Resize' in t.type)
    assert [resize.scales[i] for i in (0, 1, -1)] == [
        (1333, 480), (1333, 512), (1333, 1024)]
    wanted = [(512, 4, 0), (1024, 8, 1), (2048, 16, 8), (4096, 32, 10)]
    anchors = (cfg.model.bbox_head if retinanet
               else cfg.model.rpn_head).anchor_generator
    # RetinaNet has no map of stride 4.
    assert [*zip(cfg.model.neck.in_channels, anchors.strides,
                 (i % 11 for i in cfg.model.backbone.out_indices))
            ] == wanted[retinanet:]


def test_two_processes(shapes, tmp_path):
    """They share the gradients of both, and lambda."""
    config = tmp_path / 'two.py'
    config.write_text(f'''
_base_ = '{CONFIGS / 'mask-rcnn_shapes.py'}'
custom_imports = dict(imports=['mmvanilla', 'ranks'])
custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=2, per_iter=True),
    dict(type='SaveEachRank', folder='{tmp_path}')]
train_dataloader = dict(batch_size=2, dataset=dict(indices=16))
train_cfg = dict(max_epochs=1, val_interval=2)
''')
    done = run_tool('dist_train.sh', config, 2, '--work-dir', tmp_path,
                    '--cfg-options', *data_options('mask-rcnn', shapes),
                    cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f'rank{i}.pth', weights_only=True)
             for i in range(2)]
    expected = [[i / 8] * 5 for i in range(4)]
    assert [rank['lams'] for rank in ranks] == [expected] * 2
    # The images, and so their statistics, are those of each process.
    weights, others = ({k: v for k, v in rank['state_dict'].items()
                        if 'running' not in k} for rank in ranks)
    assert_same_weights(weights, others)
    assert not torch.equal(*(rank['state_dict'][
        'backbone.stem.conv.norm1.running_mean'] for rank in ranks))
