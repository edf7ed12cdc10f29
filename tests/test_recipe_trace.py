# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""18 steps of the authors' training, taken by our runner and config."""
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from golden import build_classifier, load, model_cfg, relative_l2
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from mmvanilla.checkpoints import from_authors

CONFIG = (
    Path(__file__).parents[1] / 'configs' / 'vanillanet' /
    'vanillanet-6_8xb128_in1k.py')


@DATASETS.register_module()
class TraceDataset(Dataset):
    """The trace's one batch, again and again."""

    metainfo = {}

    def __init__(self, epoch_length: int, dtype: str) -> None:
        trace = load('recipe_trace')
        smoothing = 0.1
        # The targets of the trace are smoothed already, ours are not yet.
        scores = trace['target'].double() - smoothing / 10
        self.scores = scores / (1 - smoothing)
        self.inputs = trace['input'].to(getattr(torch, dtype))
        self.length = epoch_length * len(self.inputs)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        index %= len(self.inputs)
        sample = DataSample().set_gt_score(self.scores[index])
        return dict(inputs=self.inputs[index], data_samples=sample)


@MODELS.register_module()
class TracePreprocessor(BaseDataPreprocessor):
    """Leave the batch in the precision that it has."""

    def __init__(self, batch_augments: None) -> None:
        super().__init__()


@HOOKS.register_module()
class RecordHook(Hook):
    """Keep what each step saw."""

    def before_train(self, runner):
        self.steps = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        # Of the head, whose learning rate is not scaled.
        lr = runner.optim_wrapper.optimizer.param_groups[-1]['lr']
        self.lam_and_lr = runner.model.head.classifier.lam, lr

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.steps.append((*self.lam_and_lr, outputs['loss'].item()))


def run(dtype: str, work_dir: Path) -> Runner:
    trace = load('recipe_trace')
    recipe = trace['recipe']
    cfg = Config.fromfile(CONFIG)
    # The trace is of a smaller network, on data of its own, and shorter.
    own = model_cfg(trace)
    cfg.model.backbone.arch = own['backbone']['arch']
    cfg.model.backbone.act_num = own['backbone']['act_num']
    cfg.model.head.num_classes = own['head']['num_classes']
    cfg.model.head.in_channels = own['head']['in_channels']
    cfg.model.head.dropout = trace['kwargs']['drop_rate']
    cfg.model.pop('train_cfg')
    cfg.data_preprocessor = dict(type='TracePreprocessor')
    cfg.train_dataloader = dict(
        batch_size=len(trace['input']),
        num_workers=0,
        dataset=dict(
            type='TraceDataset',
            epoch_length=recipe['iters_per_epoch'],
            dtype=dtype),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'))
    for key in list(cfg):
        if key.startswith(('val_', 'test_')):
            cfg.pop(key)
    warmup, epochs = recipe['warmup_epochs'], recipe['epochs']
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = warmup
    cfg.param_scheduler[1].end = epochs
    cfg.param_scheduler[1].T_max = epochs - warmup
    deep_training, ema = cfg.custom_hooks
    deep_training.decay_epochs = recipe['decay_epochs']
    ema.momentum = 1 - recipe['ema_decay']
    cfg.custom_hooks.append(dict(type='RecordHook'))
    cfg.default_hooks.checkpoint.save_best = None
    # There is no mixed precision on the CPU.
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale')
    cfg.work_dir = str(work_dir)

    start = work_dir / 'init.pth'
    torch.save(dict(model=trace['init']), start)
    cfg.load_from = f'vanillanet://{start}'

    runner = Runner.from_cfg(cfg)
    runner.model.to(getattr(torch, dtype))
    runner.train()
    return runner


def hook_of(runner: Runner, name: str) -> Hook:
    return next(h for h in runner.hooks if type(h).__name__ == name)


def as_vector(state_dict: dict, keys) -> torch.Tensor:
    return torch.cat([state_dict[k].detach().double().flatten() for k in keys])


@pytest.fixture(scope='module', params=['float64', 'float32'])
def dtype_and_runner(request, tmp_path_factory):
    return request.param, run(request.param, tmp_path_factory.mktemp('run'))


def test_steps(dtype_and_runner):
    dtype, runner = dtype_and_runner
    tolerance = dict(float64=1e-6, float32=1e-5)[dtype]
    steps = hook_of(runner, 'RecordHook').steps
    trace = load('recipe_trace')['trace']
    assert len(steps) == len(trace) == 18
    for (lam, lr, loss), theirs in zip(steps, trace):
        assert lam == theirs['lam']
        assert lr == pytest.approx(theirs['lr'], rel=1e-9, abs=1e-12)
        assert loss == pytest.approx(theirs['loss'], rel=tolerance)


# In float32, biases that a batch norm cancels drift by rounding alone.
@pytest.mark.parametrize('dtype_and_runner', ['float64'], indirect=True)
def test_final_weights(dtype_and_runner):
    _, runner = dtype_and_runner
    trace = load('recipe_trace')
    ours = runner.model.state_dict()
    theirs = from_authors(trace['final'])
    assert ours.keys() == theirs.keys()
    assert relative_l2(as_vector(ours, theirs), as_vector(theirs,
                                                          theirs)) < 1e-5

    # EMAHook starts from a copy made after the first step, timm's from one
    # made before: with a learning rate of 0 in that step the parameters are
    # the same. The batch norms' statistics are not, and differ by what is
    # left of the first of 18 steps.
    ema = hook_of(runner, 'EMAHook').ema_model
    ours = ema.module.state_dict()
    theirs = from_authors(trace['ema_final'])
    names = [name for name, _ in runner.model.named_parameters()]
    assert relative_l2(as_vector(ours, names), as_vector(theirs,
                                                         names)) < 1e-5
    stats = [k for k in ours if k.endswith(('running_mean', 'running_var'))]
    assert relative_l2(as_vector(ours, stats), as_vector(theirs, stats)) < 0.1


def test_parameter_groups(dtype_and_runner):
    _, runner = dtype_and_runner
    ours = defaultdict(lambda: [0, 0])
    for group in runner.optim_wrapper.optimizer.param_groups:
        (param, ) = group['params']
        counts = ours[round(group['lr_scale'], 12), group['weight_decay']]
        counts[0] += 1
        counts[1] += param.numel()
    theirs = {(round(group['lr_scale'], 12), group['weight_decay']):
              [group['n'], group['numel']]
              for group in load('recipe_trace')['groups']}
    assert dict(ours) == theirs


def test_init_is_not_final():
    """The comparison of the weights can tell a training from none."""
    trace = load('recipe_trace')
    ours = build_classifier(trace).state_dict()
    theirs = from_authors(trace['final'])
    assert relative_l2(as_vector(ours, theirs), as_vector(theirs,
                                                          theirs)) > 1e-2
