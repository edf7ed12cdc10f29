# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import ROOT, lams, read, run_tool, tiny_cfg
from tiny import train as train_tiny

NEEDS = 'the README tells how to install the toolboxes'
mmdet = pytest.importorskip('mmdet', reason=f'no mmdet: {NEEDS}')
pytest.importorskip(
    'mmcv.ops',
    reason=f"mmcv has no compiled ops: {NEEDS}",
    exc_type=ImportError)

from downstream.runs import (  # noqa: E402
    CONFIGS,
    build,
    data_options,
    one_step,
    without_pretrained,
)
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.model import convert_sync_batchnorm  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from mmvanilla.reparam.merge import reparameterize  # noqa: E402

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
        metainfo=dict(
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8., 24., 24.]]),
            labels=torch.tensor([1]),
            masks=BitmapMasks(mask, height, width)))
    return dict(
        inputs=[torch.from_numpy(image).permute(2, 0, 1)] * count,
        data_samples=[sample.clone() for _ in range(count)])


@pytest.mark.parametrize('name', NAMES)
def test_full_size(name):
    result, = one_step(without_pretrained(FULL[name]), batch(64, 64))
    assert result.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('name', NAMES)
def test_authors_setup(name):
    cfg = Config.fromfile(FULL[name])
    assert cfg.model.backbone.act_num == 4
    assert cfg.sync_bn == 'torch'
    assert cfg.model.neck.num_outs == 5
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.train_cfg.max_epochs == 12
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW' and optimizer.weight_decay == 0.05
    retinanet = name == 'retinanet'
    assert optimizer.lr == (8e-5 if retinanet else 1.3e-4)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 500)
    assert steps.milestones == ([10, 11] if retinanet else [10, 12])
    resize, = (t for t in cfg.train_dataloader.dataset.pipeline
               if 'Resize' in t.type)
    assert resize.scales[0] == (1333, 480)
    assert resize.scales[1] == (1333, 512)
    assert resize.scales[-1] == (1333, 1024)
    channels, strides, indices = zip(*[
        (512, 4, 0), (1024, 8, 1), (2048, 16, 8), (4096, 32, 10)
    ][retinanet:])
    assert cfg.model.neck.in_channels == list(channels)
    backbone = dict(cfg.model.backbone)
    assert [i % 11 for i in backbone['out_indices']] == list(indices)
    anchors = (
        cfg.model.bbox_head if retinanet else
        cfg.model.rpn_head).anchor_generator
    assert tuple(anchors.strides[:len(strides)]) == strides


@pytest.mark.parametrize('name', NAMES)
def test_learns_and_merges(runs, name):
    run = runs(name)
    # With the deep training hook or, without any, at 1 all along.
    assert run.lams() == {1.0}
    assert ('lambda:' in run.log) == (name == 'mask-rcnn')
    metric, goal = GOAL[name]
    before, after = run.test(), run.test_merged()
    print(f'{name}: {metric} {before[metric]} in {run.seconds:.0f} s')
    assert before[metric] >= goal
    assert before.keys() == after.keys()
    for key in before:
        assert round(before[key], 3) == round(after[key], 3), key
    assert run.test('--deploy') == before


@pytest.mark.parametrize('name', NAMES)
def test_merged_has_no_train_form(runs, name):
    merged = read(runs(name).merged)['state_dict']
    assert not [k for k in merged if '.norm' in k or k.endswith('.lam')]
    backbone = [k for k in merged if k.startswith('backbone.')]
    # Convolution and series of the stem and of four stages, with biases.
    assert len(backbone) == 5 * 4


def test_layers_in_a_detectors_own_backbone(tmp_path):
    """mmdet's ResNet, changed by mmpretrain's wrapper, trained and merged."""
    cfg = Config.fromfile(CONFIGS / 'retinanet_shapes.py')
    cfg.model.backbone = dict(
        type='mmpretrain.WithDeepTraining',
        model=dict(
            type='ResNet', depth=18, base_channels=8, stem_channels=8,
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


def test_visualizer_draws_detections(runs, shapes):
    run = runs('retinanet')
    run.test_merged('--show-dir', run.work_dir / 'drawn')
    assert len([p for p in (run.work_dir / 'drawn').rglob('*')
                if p.is_file()]) == 80


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


def test_frozen_and_norm_eval():
    cfg = Config.fromfile(CONFIGS / 'retinanet_shapes.py')
    cfg.model.backbone.update(frozen_stages=1, norm_eval=True)
    model, optim_wrapper = build(cfg)
    model.init_weights()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.train().train_step(batch(64, 64), optim_wrapper)
    for name, value in model.backbone.state_dict().items():
        frozen = name.startswith(('stem.', 'stages.0.'))
        stays = frozen or name.endswith(('running_mean', 'running_var', 'lam',
                                         'num_batches_tracked'))
        assert torch.equal(value, before[name]) == stays, name


def test_pretrained_backbone(tmp_path):
    # Stopped before lambda is 1, so that what is loaded is not a default.
    cfg = tiny_cfg(tmp_path, epochs=2, decay_epochs=4)
    train_tiny(cfg)
    checkpoint = tmp_path / 'epoch_2.pth'
    state_dict = read(checkpoint)['state_dict']
    assert lams(state_dict) == {0.25}

    detector = Config.fromfile(CONFIGS / 'retinanet_shapes.py')
    detector.model.backbone.update(
        arch=cfg.model.backbone.arch,
        act_num=cfg.model.backbone.get('act_num', 3),
        in_channels=1,
        out_indices=(0, 1),
        init_cfg=dict(
            type='Pretrained', checkpoint=str(checkpoint),
            prefix='backbone.'))
    detector.model.neck.in_channels = [8, 8]
    model, _ = build(detector)
    model.init_weights()
    loaded = model.backbone.state_dict()
    wanted = {
        k[len('backbone.'):]: v
        for k, v in state_dict.items() if k.startswith('backbone.')
    }
    assert loaded.keys() == wanted.keys()
    assert [k for k in wanted if k.endswith('.lam')]
    assert not [k for k in wanted if not torch.equal(loaded[k], wanted[k])]


@pytest.mark.parametrize(
    'config',
    sorted((ROOT / 'configs').glob('*ion/*.py')),
    ids=lambda path: path.stem)
def test_every_config_saves_whole_checkpoints(config):
    hooks = Config.fromfile(config).default_hooks
    assert hooks.checkpoint.type == 'mmpretrain.AtomicCheckpointHook'


def test_two_processes(shapes, tmp_path, monkeypatch):
    # Each rank writes its weights down: DDP's own word is not asked for.
    config = tmp_path / 'two.py'
    config.write_text(f'''
_base_ = '{CONFIGS / 'mask-rcnn_shapes.py'}'
custom_imports = dict(imports=['mmvanilla', 'downstream.save_ranks'])
custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=2, per_iter=True),
    dict(type='SaveRanks'),
]
train_dataloader = dict(batch_size=2, dataset=dict(indices=16))
train_cfg = dict(max_epochs=1, val_interval=2)
''')
    monkeypatch.setenv('PYTHONPATH', str(ROOT / 'tests'))
    done = run_tool('dist_train.sh', config, 2, '--work-dir', tmp_path,
                    '--cfg-options', *data_options('mask-rcnn', shapes),
                    cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f'rank_{rank}.pth') for rank in range(2)]
    assert ranks[0]['iters'] == ranks[1]['iters'] == 4
    # The ranks saw different images, and share the gradients all the same.
    assert ranks[0]['images'].isdisjoint(ranks[1]['images'])
    assert len(ranks[0]['images'] | ranks[1]['images']) == 16
    weights = [rank['parameters'] for rank in ranks]
    assert weights[0].keys() == weights[1].keys()
    assert not [
        k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])
    ]
    assert ranks[0]['lams'] == ranks[1]['lams'] == {0.375}


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
