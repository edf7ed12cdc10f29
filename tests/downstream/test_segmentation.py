# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from downstream.runs import CONFIGS, build, one_step, without_pretrained
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tiny import ROOT

FULL = (
    ROOT / 'configs' / 'segmentation' /
    'upernet_vanillanet-13_8xb2-160k_ade20k-512x512.py')


def batch(height: int, width: int, count: int = 1) -> dict:
    image = np.full((height, width, 3), 90, np.uint8)
    image[8:24, 8:24] = (220, 30, 30)
    labels = np.zeros((1, height, width), np.int64)
    labels[:, 8:24, 8:24] = 1
    samples = []
    for _ in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=(height, width),
                                             ori_shape=(height, width)))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels))
        samples.append(sample)
    return dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)] * count,
                data_samples=samples)


def test_full_size():
    cfg = without_pretrained(FULL)
    cfg.model.data_preprocessor.size = (64, 64)
    # Two: a batch norm behind the pyramid's 1x1 pooling needs several values.
    data = batch(64, 64, count=2)
    result, _ = one_step(cfg, data)
    assert result.pred_sem_seg.data.shape == (1, 64, 64)


def test_setup():
    cfg = Config.fromfile(FULL)
    assert (cfg.model.backbone.act_num, cfg.sync_bn,
            cfg.train_dataloader.batch_size) == (4, 'torch', 2)
    assert [i % 11 for i in cfg.model.backbone.out_indices] == [0, 1, 8, 10]
    assert cfg.model.decode_head.in_channels == [512, 1024, 2048, 4096]
    assert cfg.model.auxiliary_head.in_channels == 2048
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.param_scheduler[-1] == dict(  # it ends with the run
        type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500)


def test_learns_and_merges(runs):
    run = runs('upernet')
    # In an iteration-based loop, from scratch, with the hook.
    assert 'lambda: 0.4960' in run.log
    assert run.lams() == {1.0}
    before, after = run.test(), run.test_merged()
    assert before['mIoU'] >= 70
    assert before.keys() == after.keys()
    for key in before:
        # In percent: the fifth decimal of the share.
        assert round(before[key], 3) == round(after[key], 3), key
    assert run.test('--deploy') == before



@pytest.mark.parametrize('size', [(32, 32), (33, 47), (65, 127), (40, 101)])
def test_any_size(size):
    cfg = Config.fromfile(CONFIGS / 'upernet_shapes.py')
    model, optim_wrapper = build(cfg)
    model.init_weights()
    losses = model.train().train_step(batch(*size, count=2), optim_wrapper)
    assert torch.isfinite(losses['loss'])
    # No padding when testing: UPerNet resizes what does not fit.
    result, = model.eval().test_step(batch(*size))
    assert result.pred_sem_seg.data.shape == (1, *size)
