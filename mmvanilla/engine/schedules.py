# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare the schedules of a run with its length and its checkpoint."""
import math
import os
import warnings

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import PARAM_SCHEDULERS

from ..utils.configs import type_name
from ..utils.errors import UserError
from .hooks.deep_training_hook import (
    DeepTrainingHook,
    flatten,
    trained_activations,
)
from .launch import WORLD_SIZE

# What schedulers count in epochs or iterations.
TIMES = ('begin', 'end', 'T_max', 'milestones', 'step_size', 'periods',
         'total_steps')
SETTINGS = ('lr', 'weight_decay', 'momentum', 'betas', 'eps')
# What the states of schedulers and optimizers hold beside a config's values.
OTHERS = {'last_step', '_global_step', '_last_value', 'verbose', 'best',
          'num_bad_epochs', 'cooldown_counter', 'anneal_func', 'params'}


def scale_lr(cfg: Config, enable: bool) -> list[str]:
    """Scale the learning rate of a config, in place; return notes."""
    # mmengine has the linear rule only, and ignores accumulated batches.
    scale, wrapper = cfg.get('auto_scale_lr') or {}, cfg.optim_wrapper
    base, rule = scale.get('base_batch_size'), scale.get('rule', 'linear')
    batch = cfg.train_dataloader.get('batch_size')
    rate = (wrapper.get('optimizer') or {}).get('lr')
    if rule not in ('linear', 'sqrt'):
        raise UserError("auto_scale_lr.rule must be 'linear' or 'sqrt', but "
                        f'got {rule!r}')
    enable = enable or scale.get('enable')
    if not (base and batch and rate):
        if enable:
            raise UserError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size, '
                'train_dataloader.batch_size and optim_wrapper.optimizer.lr')
        return []
    total = batch * (wrapper.get('accumulative_counts') or 1) * int(
        os.environ.get(WORLD_SIZE.get(cfg.launcher, ''), 1))
    if not enable:
        return [f'The batch is {total} in all, and the learning rate is for '
                f'{base}: --auto-scale-lr scales it ({rule} rule).'
                ] * (total != base)
    ratio = (total / base)**(1 if rule == 'linear' else 0.5)
    wrapper.optimizer.lr = rate * ratio
    # This holds for the config that is saved in the work dir.
    scale.update(enable=False, base_batch_size=total)
    return [f'The learning rate is multiplied by {ratio:.4g}, for a batch of '
            f'{total} instead of {base} ({rule} rule).']


def check_schedules(runner) -> None:
    """Let schedules fit a run; call it right before ``runner.train()``."""
    runner.register_hook(_ScheduleHook())
    for cfg in flatten(runner.param_schedulers):
        _length(runner, cfg)


def _length(runner, cfg: dict) -> int:
    """Length of the run in a scheduler's unit, which is its default end."""
    by_epoch = cfg.get('by_epoch', True)
    length = runner.max_epochs if by_epoch else runner.max_iters
    # mmengine refuses an end before the begin, as in a run that is too short.
    cfg.setdefault('end', max(length, cfg.get('begin', 0) + 1))
    return length


class _ScheduleHook(Hook):

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Let schedule and settings of the config count in a resumed run."""
        if not runner.cfg.get('resume') or 'optimizer' not in checkpoint or (
                hasattr(runner, 'strategy')):  # which loads states by itself
            return
        meta, states = checkpoint['meta'], checkpoint['optimizer']
        done, length = meta['iter'], math.inf
        if hasattr(runner.train_loop, 'run_epoch'):
            length = len(runner.train_dataloader)
            meta['iter'] = meta['epoch'] * length
        groups, schedulers, old = map(flatten, (
            runner.optim_wrapper.param_groups, runner.param_schedulers,
            checkpoint.get('param_schedulers')))
        saved = [group for x in (
            [states] if 'state' in states else states.values()) for group in (
                *x['param_groups'], *flatten(x.get('base_param_settings')))]
        if [{*SETTINGS} & {*x} for x in groups] != [
                {*SETTINGS} & {*x} for x in saved]:
            raise UserError(f'cannot resume from {runner.cfg.load_from} with '
                            'another optimizer, or other groups of parameters')
        skip = OTHERS | {x.param_name for x in schedulers}
        now, then = (
            [{k: x[k] for k in x if k not in skip} for x in items] for items
            in ([*(x.state_dict() for x in schedulers), *groups],
                [*old, *saved]))
        if meta['iter'] == done and now == then:
            return
        with warnings.catch_warnings():  # that the optimizer made no step
            warnings.simplefilter('ignore')
            for i in range(1, meta['iter'] + 1):
                for x in sorted(schedulers, key=lambda x: x.by_epoch):
                    if not x.by_epoch or i % length == 0:
                        x.step()
        runner.logger.warning(
            'Since the checkpoint, the schedule, settings of the optimizer, '
            'the batch size or the data have changed (or it was saved within '
            'an epoch). The config counts: the run goes on with iteration '
            f'{meta["iter"] + 1} and a learning rate of '
            f'{groups[-1]["lr"]:.4g} instead of {saved[-1]["lr"]:.4g}.')
        checkpoint.pop('param_schedulers', None)
        for group, other in zip(groups, saved):
            other.update(
                {k: group[k] for k in group if k.endswith(SETTINGS)})

    def before_train(self, runner) -> None:
        """Warn where lambda or the schedule does not fit the run."""
        lams = [x.lam for x in trained_activations(runner).values()]
        if lams and not any(
                isinstance(x, DeepTrainingHook) for x in runner.hooks):
            runner.logger.warning(
                'The network is in train form without DeepTrainingHook: '
                f'lambda stays {min(lams):g}. At 1, deep_training=False gives '
                'the same in less time; below, it cannot be merged.')
        given = runner.cfg.get('param_scheduler')
        several = isinstance(given, dict) and 'type' not in given
        for own in given.values() if several else [given]:
            cfgs = [x for x in flatten(own) if 'LR' in type_name(x)
                    and 'Plateau' not in type_name(x)]
            problem = cfgs and _problem(runner, cfgs)
            if cfgs and not hasattr(runner.train_loop, 'run_epoch') and all(
                    x.get('by_epoch', True) for x in cfgs):
                problem = ('does not follow the run: its loop counts '
                           'iterations, and the schedulers epochs; give them '
                           'by_epoch=False')
            if problem:
                times = [f'{type_name(x)}.{k}={x[k]}' for x in cfgs
                         for k in TIMES[1:] if x.get(k)]
                runner.logger.warning(
                    f'The learning rate {problem} ({", ".join(times)}). '
                    'Without end and T_max, schedulers follow max_epochs or '
                    'max_iters of train_cfg.')


def _problem(runner, cfgs: list[dict]) -> str | None:
    """What is wrong with the learning rate, in a run of 1000 steps."""
    base = max(x.get('initial_lr', x['lr'])
               for x in flatten(runner.optim_wrapper.param_groups))
    optimizer = torch.optim.SGD([torch.zeros(1)], base)
    schedulers, longer = [], False
    for cfg in map(dict, cfgs):
        total = _length(runner, cfg)
        if cfg.get('total_steps', total) < total:
            raise UserError('param_scheduler: its total_steps are fewer than '
                            'those of the run')
        times = {k: torch.tensor(cfg[k]) for k in TIMES if cfg.get(k)}
        longer |= any(x.max() > total for x in times.values())
        cfg.update({k: (x * 1000 / total).ceil().int().tolist()
                    for k, x in times.items()})
        cfg['end'] = max(cfg['end'], cfg.get('begin', 0) + 2)
        if type_name(cfg) == 'ExponentialLR':
            cfg['gamma'] **= total / 1000
        cfg.update(by_epoch=False, convert_to_iter_based=False)
        schedulers.append(PARAM_SCHEDULERS.build(
            cfg, default_args=dict(optimizer=optimizer)))
    optimizer.step()  # which schedulers warn of, if it comes after theirs
    rates = torch.ones(1000, dtype=torch.float64)
    for i in range(1000):
        rates[i] = optimizer.param_groups[0]['lr']
        for scheduler in schedulers if i < 999 else ():
            scheduler.step()
    peak, last = rates.max().item(), rates[-1].item()
    falling = rates[(rates >= 0.99 * peak).nonzero()[0]:]
    rise = (falling - falling.cummin(0).values).max().item()
    low = rates <= max(last, peak / 1000) * 1.001
    flat = low.flip(0).cumprod(0).double().mean().item()
    names = str([type_name(x) for x in cfgs])
    if rise > 0.05 * peak and 'Restart' not in names:
        return 'falls and rises again'
    if last < 0.09 * peak and flat > (0.4 if 'Step' in names else 0.15):
        return f'is at its minimum for the last {flat:.0%} of the run'
    if longer and last > peak / 10:
        return (f'is {last / max(peak, base):.0%} of its maximum when the run '
                'ends')
    return None
