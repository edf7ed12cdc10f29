# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The hook inside real runs of mmengine's runner."""
import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import (
    BaseModel,
    BaseTTAModel,
    MMDistributedDataParallel,
    MMFullyShardedDataParallel,
)
from mmengine.optim import OptimWrapper
from tiny import assert_same_weights, build, lams, read, tiny_cfg, train
from torch.utils.data import DataLoader, IterableDataset

from mmvanilla.checkpoints import load_weights, safe_reading
from mmvanilla.engine import DeepTrainingHook
from mmvanilla.engine.hooks.deep_training_hook import unwrap_model
from mmvanilla.layers import find_activations
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError


class Recorder(Hook):
    """Note lambda of every layer as each iteration begins."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        values = {a.lam for a in find_activations(runner.model).values()}
        assert len(values) == 1
        self.seen.append(values.pop())


def record(cfg) -> list:
    """Train and return lambda at each iteration."""
    runner = build(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    with safe_reading():
        runner.train()
    return recorder.seen


def cosine(progress):
    return 0.5 * (1 - math.cos(math.pi * progress))


@pytest.mark.parametrize('by_epoch, hook, expected', [
    (True, dict(decay_epochs=3),
     [e / 3 for e in (0, 1, 2, 3) for _ in range(4)]),
    (True, dict(decay_epochs=2, schedule='cosine'),
     [cosine(e / 2) for e in (0, 1, 2, 2) for _ in range(4)]),
    (True, dict(decay_epochs=3, per_iter=True),
     [min(i / 12, 1) for i in range(16)]),
    # A share of the run.
    (True, dict(decay_epochs=0.5),
     [e / 2 for e in (0, 1, 2, 2) for _ in range(4)]),
    (True, dict(decay_epochs=0.2), [min(i / 3.2, 1) for i in range(16)]),
    (False, dict(decay_epochs=0.5),
     [e / 2 for e in (0, 1, 2, 2) for _ in range(4)]),
    (False, dict(decay_epochs=3),
     [e / 3 for e in (0, 1, 2, 3) for _ in range(4)]),
    (False, dict(decay_iters=10, schedule='cosine'),
     [cosine(min(i / 10, 1)) for i in range(16)]),
], ids=lambda value: str(value) if isinstance(value, dict) else '')
def test_schedule(tmp_path, by_epoch, hook, expected):
    """Iterations count, not steps of the optimizer."""
    cfg = tiny_cfg(tmp_path)
    cfg.custom_hooks = [dict(type='DeepTrainingHook', **hook)]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.optim_wrapper.accumulative_counts = 2
    if not by_epoch:
        cfg.train_cfg = dict(by_epoch=False, max_iters=16)
        # With others, mmengine sleeps for two seconds after each epoch.
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
        cfg.param_scheduler = None
        cfg.default_hooks.checkpoint.update(interval=8, by_epoch=False)
        cfg.log_processor = dict(by_epoch=False)
    assert record(cfg) == pytest.approx(expected, abs=1e-15)
    assert expected[-1] == 1


@pytest.mark.parametrize('kwargs, message', [
    (dict(), 'either decay_epochs or decay_iters'),
    (dict(decay_epochs=3, decay_iters=10), 'got 3 and 10'),
    (dict(decay_epochs=0), 'above 0'),
    (dict(decay_epochs=3, schedule='step'), "'linear' or 'cosine'.*'step'"),
])
def test_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        DeepTrainingHook(**kwargs)


@pytest.mark.parametrize('change, message', [
    (lambda cfg: [cfg.model[part].update(deploy=True)
                  for part in ('backbone', 'head')], 'form: remove Deep'),
    (lambda cfg: cfg.custom_hooks.append(cfg.custom_hooks[0]),
     'more than one DeepTrainingHook')])
def test_refusals(tmp_path, change, message):
    cfg = tiny_cfg(tmp_path)
    change(cfg)
    with pytest.raises(UserError, match=message):
        train(cfg)


class Stream(IterableDataset):
    """Images without end."""

    def __iter__(self):
        while True:
            yield dict(inputs=torch.rand(1, 32, 32))


@pytest.mark.parametrize('dataset', [Stream(), []], ids=['stream', 'empty'])
def test_epochs_of_a_data_set_without_length(tmp_path, dataset):
    cfg = tiny_cfg(tmp_path)
    cfg.train_cfg = dict(by_epoch=False, max_iters=4)
    cfg.param_scheduler = None
    runner = build(cfg)
    runner._train_dataloader = DataLoader(dataset, batch_size=4)
    with pytest.raises(UserError, match='no length.*decay_iters'):
        runner.train()


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    """A run of four epochs with an average."""
    cfg = tiny_cfg(tmp_path_factory.mktemp('averaged'))
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.1, update_buffers=True))
    return train(cfg)


def test_frozen_pairs_keep_their_lambda(averaged, tmp_path, capfd):
    """Others start anew from loaded weights, and say where they end."""
    cfg = tiny_cfg(tmp_path, epochs=1)
    cfg.load_from = f'{averaged.work_dir}/epoch_4.pth'
    cfg.model.backbone.frozen_stages = 1
    cfg.custom_hooks.append(dict(type='EMAHook', update_buffers=True))
    capfd.readouterr()
    train(cfg)
    out = ' '.join(''.join(capfd.readouterr()).split())
    assert 'training: lambda will be 0 at the end' in out
    checkpoint = read(tmp_path / 'epoch_1.pth')
    for name in ('state_dict', 'ema_state_dict'):
        found = {key.removeprefix('module.').rsplit('.conv', 1)[0]: float(v)
                 for key, v in checkpoint[name].items()
                 if key.endswith('.lam')}
        frozen = {v for k, v in found.items()
                  if k.startswith(('backbone.stem', 'backbone.stages.0'))}
        others = {v for k, v in found.items()
                  if k.startswith(('backbone.stages.1', 'head'))}
        assert frozen == {1} and others == {0}


class Distiller(BaseModel):
    """A student, and a teacher of which a mode may stay as it is."""

    def __init__(self, student, teaches_in_eval):
        super().__init__(student.data_preprocessor)
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teaches_in_eval = teaches_in_eval

    def train(self, mode=True):
        super().train(mode)
        self.teacher.train(mode and not self.teaches_in_eval)
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        with torch.no_grad():
            self.teacher(inputs)
        return self.student(inputs, data_samples, mode)


@pytest.mark.parametrize('frozen_by', ['mode', 'omission', 'rate'])
def test_a_teacher_keeps_its_lambda(tmp_path, frozen_by):
    """In eval mode, or in training mode where no optimizer trains it."""
    runner = build(tiny_cfg(tmp_path, epochs=2))
    # In eval mode until training starts, as `build_model` leaves a model.
    runner.model = model = Distiller(
        build_model(runner.cfg), frozen_by == 'mode').eval()
    groups = [dict(params=model.student.parameters(), lr=1e-3),
              dict(params=model.teacher.parameters(), lr=0.0)]
    if frozen_by != 'mode':
        runner.optim_wrapper = OptimWrapper(
            torch.optim.SGD(groups[:1 + (frozen_by == 'rate')]))
    runner.train()
    assert lams(model.teacher.state_dict()) == {1}
    assert lams(model.student.state_dict()) == {1 / 3}


def test_resuming_with_a_longer_decay(tmp_path, capfd):
    """Lambda waits for the schedule to come by."""
    train(tiny_cfg(tmp_path, epochs=2, decay_epochs=2))
    cfg = tiny_cfg(tmp_path, epochs=6, decay_epochs=5)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'epoch_2.pth')
    capfd.readouterr()
    assert record(cfg)[::4] == [0.5, 0.6, 0.8, 1]
    assert 'Lambda stays 0.5, as in the checkpoint' in ''.join(
        capfd.readouterr())


def test_everything_frozen_says_so(tmp_path, capfd):
    cfg = tiny_cfg(tmp_path, epochs=1)
    runner = build(cfg)
    for name, parameter in runner.model.named_parameters():
        parameter.requires_grad_(name == 'backbone.stages.1.act.conv.weight'
                                 or name == 'backbone.stages.1.act.weight')
    runner.train()
    assert 'or every pair is frozen' in ''.join(capfd.readouterr())


def test_resumed_run_goes_on(averaged, tmp_path):
    """With lambda, learning rate and average of an undisturbed one.

    Nothing is random in it but the order of the images, which the epoch
    seeds.
    """
    resumed, whole = averaged.cfg.copy(), Path(averaged.work_dir)
    resumed.work_dir, resumed.resume = str(tmp_path), True
    resumed.load_from = str(whole / 'epoch_2.pth')
    assert record(resumed) == [e / 3 for e in (2, 3) for _ in range(4)]
    for epoch in (3, 4):
        expected, got = (read(folder / f'epoch_{epoch}.pth')
                         for folder in (whole, tmp_path))
        for key in ('state_dict', 'ema_state_dict'):
            assert_same_weights(expected[key], got[key])
        assert [g['lr'] for g in expected['optimizer']['param_groups']] == [
            g['lr'] for g in got['optimizer']['param_groups']]


def test_ema_has_the_schedules_lambda(averaged):
    runner = averaged
    for epoch in range(4):
        checkpoint = read(f'{runner.work_dir}/epoch_{epoch + 1}.pth')
        assert lams(checkpoint['state_dict']) == {epoch / 3}
        assert lams(checkpoint['ema_state_dict']) == {epoch / 3}
    ema = next(h for h in runner.hooks if hasattr(h, 'ema_model')).ema_model
    assert lams(ema.state_dict()) == lams(runner.model.state_dict()) == {1.0}

    # The average is what the file holds; others test that it merges.
    model = build_model(runner.cfg)
    load_weights(model, f'{runner.work_dir}/epoch_4.pth')
    assert_same_weights(
        {k[len('module.'):]: v for k, v in ema.state_dict().items()
         if k.startswith('module.')}, model.state_dict())


class Augmented(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_wrappers(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/init', rank=0, world_size=1)
    try:
        model = build_model(tiny_cfg('unused'))
        model.module = torch.nn.Linear(1, 1)  # a part of this name
        for wrapped in (model, Augmented(model),
                        MMDistributedDataParallel(Augmented(model))):
            assert unwrap_model(wrapped) is model
        # FSDP trains on accelerators only; that its wrapping hides no layer,
        # and leaves lambda in its state dict, shows without.
        wrapped = MMFullyShardedDataParallel(
            model, device_id=torch.device('cpu'))
        found = find_activations(wrapped)
        assert len(found) == 4
        for act in found.values():
            act.lam = 0.25
        assert lams(wrapped.state_dict()) == {0.25}
    finally:
        dist.destroy_process_group()
