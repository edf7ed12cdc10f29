# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Runs of mmengine's runner on a GPU."""
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import relative_l2
from mmengine.config import Config
from mmengine.hooks import Hook
from tiny import ROOT, assert_same_weights, build, lams, read, tiny_cfg

from mmvanilla.checkpoints import load_weights, safe_reading
from mmvanilla.layers import find_activations
from mmvanilla.reparam import reparameterize
from mmvanilla.utils.configs import build_model

RECIPE = ROOT / 'configs' / 'vanillanet' / 'vanillanet-6_8xb128_in1k.py'


class Recorder(Hook):
    """Note lambda, the loss and the scale of the loss of each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.lams, self.losses, self.scales = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        value, = {a.lam for a in find_activations(runner.model).values()}
        self.lams.append(value)
        self.losses.append(outputs['loss'].item())
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self.scales.append(scaler and scaler.get_scale())


def run_cfg(work_dir, device, precision: str = 'float32', scale=2.0**10):
    """The tiny config with averaged weights, the same at each call."""
    cfg = tiny_cfg(work_dir)
    cfg.env_cfg.cudnn_benchmark = False
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.1, update_buffers=True))
    if precision != 'float32' and device == 'cuda':
        cfg.optim_wrapper.update(
            type='AmpOptimWrapper', dtype=precision,
            loss_scale=dict(init_scale=scale, growth_interval=3))
    return cfg


def train(cfg, device):
    runner, recorder = build(cfg), Recorder()
    runner.register_hook(recorder)
    with safe_reading():
        runner.train()
    assert next(runner.model.parameters()).device.type == device
    return runner, recorder


@pytest.mark.parametrize('precision', ['float32', 'float16', 'bfloat16'])
def test_run(precision, device, tmp_path, record_property):
    """Lambda, averaged weights, dynamic scale of the loss, and the merge."""
    # So large that in float16 the first gradients overflow.
    cfg = run_cfg(tmp_path, device, precision, scale=2.0**24)
    runner, recorder = train(cfg, device)
    assert recorder.lams == [e / 3 for e in (0, 1, 2, 3) for _ in range(4)]
    assert np.isfinite(recorder.losses).all()
    if device == 'cuda' and precision != 'float32':
        scales = recorder.scales
        record_property('scales of the loss', f'{scales[0]:g}, {scales[-1]:g}')
        assert (min(scales) < 2**24) == (precision == 'float16')
        assert scales[-1] > 0
    ema, = (h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))
    assert lams(ema.state_dict()) == lams(runner.model.state_dict()) == {1.0}
    for epoch in range(4):
        content = read(tmp_path / f'epoch_{epoch + 1}.pth')
        for name in ('state_dict', 'ema_state_dict'):
            assert lams(content[name]) == {epoch / 3}
            assert all(x.isfinite().all() for x in content[name].values())
    assert_same_weights(
        {k[len('module.'):]: v.cpu() for k, v in ema.state_dict().items()
         if k.startswith('module.')}, content['state_dict'])
    report = reparameterize(
        cfg, tmp_path / 'epoch_4.pth', tmp_path / 'merged.pth')
    record_property('error of the merge', f'{report.comparison.max_rel:.2g}')

    # The merged file on the GPU against the trained one.
    outputs = []
    torch.manual_seed(0)
    x = torch.randn(8, 1, 32, 32, device=device)
    for config, name in ((cfg, 'epoch_4.pth'),
                         (Config.fromfile(tmp_path / 'merged.py'),
                          'merged.pth')):
        model = build_model(config).to(device)
        load_weights(model, tmp_path / name)
        outputs.append(model(x).detach())
    assert relative_l2(outputs[1], outputs[0]) < 2e-5


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_resume(precision, device, tmp_path, record_property):
    """A resumed run ends as an undisturbed one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            _, whole = train(run_cfg(tmp_path / 'whole', device, precision),
                             device)
        cfg = run_cfg(tmp_path / 'resumed', device, precision)
        cfg.resume = True
        cfg.load_from = str(tmp_path / 'whole' / 'epoch_2.pth')
        _, resumed = train(cfg, device)
    finally:
        torch.use_deterministic_algorithms(False)
    names = {name for x in found for name in re.findall(
        r'(\S+) does not have a determ', str(x.message))}
    record_property('not deterministic', ', '.join(names) or 'none')
    assert resumed.lams == whole.lams[8:]
    assert resumed.scales == whole.scales[8:]
    assert resumed.losses == pytest.approx(whole.losses[8:], rel=1e-3)
    a, b = (read(tmp_path / name / 'epoch_4.pth')
            for name in ('whole', 'resumed'))
    for key in ('state_dict', 'ema_state_dict'):
        # Where a gradient is rounding alone, AdamW makes a step of it.
        moved, start = (torch.cat([x[key][k].flatten().double() for k in
                                   a[key] if k.endswith('weight')])
                        for x in (a, read(tmp_path / 'whole/epoch_2.pth')))
        other = torch.cat([b[key][k].flatten().double() for k in a[key]
                           if k.endswith('weight')])
        same = all(torch.equal(a[key][k], b[key][k]) for k in a[key])
        record_property(f'{key} bit-identical', same)
        assert (other - moved).norm() < 1e-2 * (moved - start).norm()


def striped_images(folder: Path, classes: int, count: int) -> None:
    """Images whose class is the direction of their stripes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for split, n in (('train', count), ('val', 4)):
        for label in range(classes):
            path = folder / split / f'class_{label}'
            path.mkdir(parents=True)
            angle = np.pi * label / classes
            for i in range(n):
                wave = np.cos(angle) * x + np.sin(angle) * y
                wave = np.sin(wave / 2 + rng.uniform(0, 6))[..., None]
                image = 128 + 80 * wave * rng.uniform(0.5, 1, 3)
                image = image + rng.normal(0, 20, (64, 64, 3))
                cv2.imwrite(str(path / f'{i}.png'),
                            image.clip(0, 255).astype(np.uint8))


def test_imagenet_recipe(device, tmp_path, record_property):
    """300 iterations: AMP, LAMB, mixup, augmentation, averaged weights."""
    classes, epochs, per_epoch, batch = 8, 15, 20, 16
    if device == 'cpu':
        epochs, per_epoch = 3, 4
    decay = epochs * 2 // 3
    striped_images(tmp_path / 'data', classes, per_epoch * batch // classes)
    cfg = Config.fromfile(RECIPE)
    cfg.work_dir = str(tmp_path / 'work')
    cfg.model.backbone.arch = dict(
        dims=[64, 128, 256, 512, 512], strides=[2, 2, 2, 1])
    cfg.model.head.update(num_classes=classes, in_channels=512)
    cfg.data_preprocessor.num_classes = classes
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=batch, num_workers=8 * (device == 'cuda'),
                      persistent_workers=device == 'cuda', pin_memory=True,
                      collate_fn=dict(type='default_collate'))
        del loader.dataset['split']
        loader.dataset.update(
            type='CustomDataset', data_root=str(tmp_path / 'data'),
            data_prefix='train' if name == 'train' else 'val')
        for step in loader.dataset.pipeline:
            size = dict(RandomResizedCrop=dict(scale=64),
                        ResizeEdge=dict(scale=64),
                        CenterCrop=dict(crop_size=64))
            step.update(size.get(step.type, {}))
    # A warm-up and an average as short as the run.
    warm_up, cosine = cfg.param_scheduler
    warm_up.end = cosine.begin = 2
    cosine.end = epochs
    cosine.T_max = epochs - 2
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    for hook in cfg.custom_hooks:
        if hook.type == 'DeepTrainingHook':
            hook.decay_epochs = decay
        elif hook.type == 'EMAHook':
            hook.momentum = 0.05
    cfg.default_hooks.checkpoint.update(interval=epochs)
    cfg.default_hooks.logger.interval = 5
    cfg.randomness.seed = 0
    if device == 'cpu':
        cfg.optim_wrapper.type = 'OptimWrapper'
        del cfg.optim_wrapper['loss_scale']

    runner, recorder = train(cfg, device)
    losses = np.array(recorder.losses)
    assert len(losses) == epochs * per_epoch
    assert recorder.lams == [
        min(e / decay, 1) for e in range(epochs) for _ in range(per_epoch)]
    first, last = losses[:per_epoch].mean(), losses[-per_epoch:].mean()
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    record_property('loss', f'{first:.3f} to {last:.3f}, {accuracy} %')
    record_property('scale of the loss', recorder.scales[-1])
    assert np.isfinite(losses).all()
    assert all(p.isfinite().all() for p in runner.model.state_dict().values())
    if device == 'cuda':  # else the run is too short
        assert last < first - 0.1
        assert accuracy > 25  # 12.5 by chance
        assert recorder.scales[-1] >= 1
    checkpoint = tmp_path / 'work' / f'epoch_{epochs}.pth'
    assert lams(read(checkpoint)['ema_state_dict']) == {1.0}
    report = reparameterize(cfg, checkpoint, tmp_path / 'merged.pth')
    assert report.layers == 11
