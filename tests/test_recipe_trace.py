# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""18 steps of the authors' training, taken by our runner and config."""
from collections import defaultdict

import pytest
import torch
from golden import load, model_cfg, relative_l2
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from mmpretrain.structures import DataSample
from tiny import DIGITS
from torch.utils.data import Dataset

from mmvanilla.checkpoints import from_authors

CONFIG = DIGITS.parent / 'vanillanet-6_8xb128_in1k.py'


@DATASETS.register_module()
class TraceDataset(Dataset):
    """The trace's one batch, again and again."""

    metainfo = {}

    def __init__(self, epoch_length):
        trace = load('recipe_trace')
        # The targets of the trace are smoothed already, ours are not yet.
        self.scores = (trace['target'].double() - 0.1 / 10) / (1 - 0.1)
        self.inputs = trace['input'].double()
        self.length = epoch_length * len(self.inputs)

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        i %= len(self.inputs)
        return dict(inputs=self.inputs[i],
                    data_samples=DataSample().set_gt_score(self.scores[i]))


@MODELS.register_module()
class TracePreprocessor(BaseDataPreprocessor):
    """Leave the batch in the precision that it has."""

    def __init__(self, batch_augments):
        super().__init__()


@HOOKS.register_module()
class RecordHook(Hook):
    """Keep what each step saw."""

    def before_train(self, runner):
        self.steps = []

    def before_train_iter(self, runner, *_, **__):
        # Of the head, whose learning rate is not scaled.
        lr = runner.optim_wrapper.optimizer.param_groups[-1]['lr']
        self.steps.append([runner.model.head.classifier.lam, lr])

    def after_train_iter(self, runner, *_, outputs, **__):
        self.steps[-1].append(outputs['loss'].item())


@pytest.fixture(scope='module')
def runner(tmp_path_factory) -> Runner:
    """After training in float64."""
    work_dir = tmp_path_factory.mktemp('run')
    trace = load('recipe_trace')
    recipe = trace['recipe']
    cfg = Config.fromfile(CONFIG)
    # The trace is of a smaller network, on data of its own, and shorter.
    own = model_cfg(trace)
    for part in ('backbone', 'head'):
        cfg.model[part].update(own[part])
    cfg.model.head.dropout = trace['kwargs']['drop_rate']
    cfg.model.pop('train_cfg')
    cfg.data_preprocessor = dict(type='TracePreprocessor')
    cfg.train_dataloader = dict(
        batch_size=len(trace['input']),
        num_workers=0,
        dataset=dict(type='TraceDataset',
                     epoch_length=recipe['iters_per_epoch']),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'))
    for key in [x for x in cfg if x.startswith(('val_', 'test_'))]:
        cfg.pop(key)
    warmup, epochs = recipe['warmup_epochs'], recipe['epochs']
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler[0].end = warmup
    cfg.param_scheduler[1].update(
        begin=warmup, end=epochs, T_max=epochs - warmup)
    deep_training, ema = cfg.custom_hooks
    deep_training.decay_epochs = recipe['decay_epochs']
    ema.momentum = 1 - recipe['ema_decay']
    cfg.custom_hooks.append(dict(type='RecordHook'))
    cfg.default_hooks.checkpoint.save_best = None
    # There is no mixed precision on the CPU.
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale')
    cfg.work_dir = str(work_dir)

    torch.save(dict(model=trace['init']), work_dir / 'init.pth')
    cfg.load_from = f'vanillanet://{work_dir}/init.pth'
    runner = Runner.from_cfg(cfg)
    runner.model.double()
    runner.train()
    return runner


def hook_of(runner: Runner, name: str) -> Hook:
    return next(h for h in runner.hooks if type(h).__name__ == name)


def distance(ours: dict, theirs: dict, keys) -> float:
    """Relative distance of all entries as one vector."""
    return relative_l2(*(torch.cat([x[k].double().flatten() for k in keys])
                         for x in (ours, theirs)))


def test_steps(runner):
    steps = hook_of(runner, 'RecordHook').steps
    trace = load('recipe_trace')['trace']
    assert len(steps) == len(trace) == 18
    for (lam, lr, loss), theirs in zip(steps, trace):
        assert lam == theirs['lam']
        assert lr == pytest.approx(theirs['lr'], rel=1e-9, abs=1e-12)
        assert loss == pytest.approx(theirs['loss'], rel=1e-6)


def test_final_weights(runner):
    trace = load('recipe_trace')
    ours = runner.model.state_dict()
    theirs = from_authors(trace['final'])
    assert ours.keys() == theirs.keys()
    assert distance(ours, theirs, theirs) < 1e-5
    # It can tell a training from none.
    assert distance(from_authors(trace['init']), theirs, theirs) > 1e-2

    # EMAHook starts after the first step, timm's average before it: with a
    # learning rate of 0 in that step the parameters are the same. The batch
    # norms' statistics differ by what is left of the first of 18 steps.
    ours = hook_of(runner, 'EMAHook').ema_model.module.state_dict()
    theirs = from_authors(trace['ema_final'])
    names = [name for name, _ in runner.model.named_parameters()]
    assert distance(ours, theirs, names) < 1e-5
    stats = [k for k in ours if k.endswith(('running_mean', 'running_var'))]
    assert distance(ours, theirs, stats) < 0.1


def test_parameter_groups(runner):
    ours = defaultdict(lambda: [0, 0])
    for group in runner.optim_wrapper.optimizer.param_groups:
        (param, ) = group['params']
        counts = ours[round(group['lr_scale'], 12), group['weight_decay']]
        counts[0] += 1
        counts[1] += param.numel()
    assert dict(ours) == {
        (round(group['lr_scale'], 12), group['weight_decay']):
        [group['n'], group['numel']]
        for group in load('recipe_trace')['groups']}
