# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Schedules in real runs, of a network of one or two parameters."""
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from tiny import ROOT, build, tiny_cfg
from torch.utils.data import DataLoader

from mmvanilla.checkpoints import safe_reading
from mmvanilla.engine.schedules import check_schedules
from mmvanilla.layers import set_lam
from mmvanilla.utils.errors import UserError


class Scalars(BaseModel):

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.ones(1)) for _ in 'ab')

    def forward(self, inputs, mode='loss'):
        return dict(loss=(self.a + self.b).sum() * inputs.mean())

    def train_step(self, data, optim_wrapper):
        wrappers = optim_wrapper.values() if isinstance(
            optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        for wrapper in wrappers:
            wrapper.update_params(self(data)['loss'])
        return dict(loss=torch.zeros(()))


class Rates(Hook):
    """Note the learning rate of each iteration, of the last optimizer."""

    seen = ()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.param_groups
        if isinstance(groups, dict):
            groups = groups['b']
        self.seen = [*self.seen, groups[0]['lr']]


def run(work_dir, schedulers, epochs=8, length=5, by_epoch=True, lr=0.1,
        several=False, load_from=None, decay=0.0, stop=False,
        optimizer=torch.optim.SGD):
    """Train; return the learning rates, the log and the runner."""
    model, rates = Scalars(), Rates()

    def wrapper(*parameters):
        return OptimWrapper(optimizer(parameters, lr, weight_decay=decay))

    resume = dict(load_from=load_from and str(load_from),
                  resume=load_from is not None)
    cfg = Config(dict(param_scheduler=schedulers, **resume))
    iters = epochs * length
    runner = Runner(
        model, str(work_dir),
        # A loop of iterations would sleep before a second pass.
        DataLoader([torch.ones(1)] * (length if by_epoch else iters)),
        optim_wrapper=OptimWrapperDict(a=wrapper(model.a), b=wrapper(model.b))
        if several else wrapper(model.a, model.b),
        param_scheduler=cfg.param_scheduler,
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else
        dict(by_epoch=False, max_iters=iters),
        default_hooks=dict(checkpoint=dict(
            type='mmpretrain.AtomicCheckpointHook', by_epoch=by_epoch,
            interval=1 if by_epoch else length)),
        cfg=cfg, **resume)
    runner.register_hook(rates)
    check_schedules(runner)
    runner.train_loop.stop_training = stop
    with safe_reading():
        runner.train()
    log = max(work_dir.glob('*/*.log'), key=lambda x: x.stat().st_mtime_ns)
    warnings = [x for x in log.read_text().splitlines() if 'WARNING' in x]
    return rates.seen, ' '.join(warnings), runner


COSINE = dict(type='CosineAnnealingLR', convert_to_iter_based=True)
POLY = dict(type='PolyLR', power=1.0, by_epoch=False)
ONE_CYCLE = dict(
    type='OneCycleLR', eta_max=0.1, total_steps=40, by_epoch=False)
ITERS = dict(by_epoch=False)


@pytest.mark.parametrize('schedulers, options, words', [
    (dict(COSINE), {}, ''),
    (dict(COSINE, T_max=8), {}, ''),
    (dict(COSINE, T_max=4), {}, 'falls and rises again (.*LR.T_max=4)'),
    (dict(COSINE, T_max=4, end=4), {}, 'at its minimum for the last 5'),
    (dict(COSINE, T_max=30), {}, '% of its maximum when the run ends'),
    (dict(type='MultiStepLR', milestones=[5, 7]), {}, ''),
    (dict(type='MultiStepLR', milestones=[2, 3]), {}, 'for the last 6'),
    (dict(type='MultiStepLR', milestones=[9, 11]), {}, '100% of its maximum'),
    (dict(type='CosineRestartLR', periods=[4, 4], restart_weights=[1, 1],
          eta_min=0.0), {}, ''),
    (ONE_CYCLE, {}, ''),
    (dict(type='ConstantLR', factor=0.5, end=3), {}, ''),
    (dict(type='ExponentialLR', gamma=0.8), {}, ''),
    (dict(type='StepLR', step_size=3), {}, ''),
    (dict(type='ReduceOnPlateauLR', monitor='loss'), {}, ''),
    # Iterations that were meant to be epochs, and the reverse.
    (dict(COSINE, T_max=8, end=8, by_epoch=False, convert_to_iter_based=False),
     {}, 'at its minimum'),
    (dict(type='CosineAnnealingLR', T_max=8), ITERS, 'give them by_epoch=F'),
    (dict(POLY, end=10), ITERS, 'at its minimum'),
    (dict(POLY, end=99), ITERS, '% of its maximum'),
    (dict(POLY), ITERS, ''),
    # Longer than what is simulated step by step.
    (dict(POLY, end=2 * 10**5), dict(ITERS, length=10**5, stop=True), '% of'),
    ([dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500),
      dict(POLY, begin=500)], dict(ITERS, length=10**5, stop=True), ''),
    (dict(a=[COSINE], b=[dict(COSINE, T_max=2)]), dict(several=True),
     'falls and rises'),
    # The run ends before the warm-up.
    ([dict(COSINE, type='LinearLR', start_factor=0.1, end=5),
      dict(COSINE, begin=5)], dict(epochs=3), r' 6.%.*LinearLR.end=5'),
], ids=str)
def test_warns_of_what_does_not_fit(tmp_path, recwarn, schedulers, options,
                                    words):
    *_, warnings, _ = run(tmp_path, schedulers, **options)
    assert re.search(words, warnings)
    assert warnings.count('The learning rate') == bool(words)
    assert not any('scheduler.step()' in str(x.message) for x in recwarn)


def test_a_schedule_that_the_run_outlasts_is_refused(tmp_path):
    """Where mmengine would raise an error in the middle of the run."""
    with pytest.raises(UserError, match='total_steps'):
        run(tmp_path, dict(ONE_CYCLE, total_steps=9))


FILES = [
    'vanillanet/vanillanet-tiny_1xb64_digits.py',
    'vanillanet/vanillanet-5_8xb128_in1k.py',
    'vanillanet/vanillanet-7_8xb128_in1k.py',
    'vanillanet/vanillanet-6_finetune.py',
    'detection/rtmdet_vanillanet-s_8xb32-300e_coco.py',
    'segmentation/upernet_vanillanet-13_8xb2-160k_ade20k-512x512.py',
]


@pytest.mark.parametrize('file', FILES)
def test_max_epochs_alone(tmp_path, file):
    """The rate falls from its maximum to its minimum, at the end."""
    if file.startswith('detection'):
        pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / file)
    schedulers = cfg.param_scheduler
    # A warm-up of fewer iterations.
    if isinstance(schedulers, list) and 'by_epoch' in schedulers[0]:
        schedulers[0].end = 20
        schedulers[1].begin = 20 * ('PolyLR' in schedulers[1].type)
    lr = cfg.optim_wrapper.optimizer.lr
    rates, warnings, _ = run(
        tmp_path, schedulers, 7, 20, 'max_epochs' in cfg.train_cfg, lr)
    assert 'rate' not in warnings
    top = rates.index(max(rates))
    assert rates[top] > 0.95 * lr and top < len(rates) * 0.75
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < lr * 0.06 and rates[-1] < rates[-9] < rates[-20]


SCHEDULES = [
    (dict(COSINE), dict(COSINE), {}),
    (dict(COSINE, T_max=3, end=3), dict(COSINE), {}),
    (dict(COSINE), [dict(type='LinearLR', start_factor=0.1, end=2),
                    dict(type='MultiStepLR', milestones=[4, 6])], {}),
    (dict(COSINE), dict(COSINE), dict(lr=0.4)),
    (dict(COSINE), dict(COSINE), dict(length=10)),
    (dict(POLY), dict(POLY), ITERS),
    (dict(POLY, end=99), dict(POLY), ITERS),
    (dict(COSINE), None, {}),
    (dict(COSINE), ONE_CYCLE, {}),
    (dict(a=COSINE, b=COSINE), dict(a=COSINE, b=dict(COSINE, eta_min=0.01)),
     dict(several=True)),
]


@pytest.mark.parametrize('before, after, options', SCHEDULES, ids=str)
def test_a_resumed_run_follows_its_config(tmp_path, before, after, options):
    """As if it had always had that config."""
    options = dict(length=5) | options
    whole, *_ = run(tmp_path / 'whole', after, 8, **options)
    run(tmp_path / 'first', before, 3, **options | dict(length=5, lr=0.1))
    name = 'iter_15.pth' if 'by_epoch' in options else 'epoch_3.pth'
    resumed, warnings, runner = run(
        tmp_path, after, 8, load_from=tmp_path / 'first' / name, **options)
    assert resumed == pytest.approx(whole[3 * options['length']:], rel=1e-9)
    assert 'The config counts' in warnings
    assert runner.iter == 8 * options['length']


@pytest.mark.parametrize('schedule', [
    dict(type='StepLR', step_size=3), ONE_CYCLE], ids=str)
def test_what_stays_the_same_is_not_touched(tmp_path, schedule):
    """Also weight decay, which no schedule sets, is the config's."""
    whole, *_ = run(tmp_path / 'whole', schedule)
    path = tmp_path / 'whole' / 'epoch_4.pth'
    resumed, warnings, _ = run(tmp_path / 'same', schedule, load_from=path)
    assert (resumed, 'config counts' in warnings) == (whole[20:], False)
    resumed, warnings, runner = run(
        tmp_path / 'other', schedule, load_from=path, decay=0.5)
    assert (resumed, 'config counts' in warnings) == (
        pytest.approx(whole[20:]), True)
    assert runner.optim_wrapper.param_groups[0]['weight_decay'] == 0.5


@pytest.mark.parametrize('options', [
    dict(optimizer=torch.optim.AdamW), dict(several=True)], ids=str)
def test_another_optimizer_is_refused(tmp_path, options):
    run(tmp_path / 'first', COSINE, 1)
    with pytest.raises(UserError, match='resume from .* another optimizer'):
        run(tmp_path, COSINE, load_from=tmp_path / 'first' / 'epoch_1.pth',
            **options)


@pytest.mark.parametrize('form, lam, words', [
    (dict(), 1, 'lambda stays 1. At 1, deep_training=False'),
    (dict(), 0.5, 'lambda stays 0.5.'),
    (dict(deep_training=False), 1, ''),
])
def test_train_form_without_its_hook(tmp_path, form, lam, words):
    cfg = tiny_cfg(tmp_path, epochs=1)
    cfg.model.backbone.update(form)
    cfg.model.head.update(form)
    cfg.custom_hooks = []
    runner = build(cfg)
    set_lam(runner.model, lam)
    check_schedules(runner)
    runner.train()
    log, = tmp_path.glob('*/*.log')
    assert words in ' '.join(log.read_text().split())
    assert log.read_text().count('lambda stays') == bool(words)
