# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Merge a trained model of any toolbox, verify it, write what ships."""
import copy
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints import load_checkpoint, load_state_dict, local_path
from ..layers import SeriesActivation, switch_to_deploy
from ..utils.building import (
    build_model,
    random_batches,
    real_batches,
    scope_of,
)
from ..utils.errors import UserError
from ..utils.files import check_writable, replace_atomically, sha256
from ..utils.tables import markdown_table
from ..version import __version__
from .verify import Comparison

DEPLOYABLE = ('VanillaNet', 'VanillaNetHead', 'DeepTrainingConv2d',
              'SeriesActivation', 'WithDeepTraining')
TRAINING_HOOKS = ('DeepTrainingHook', 'ReparameterizeHook', 'EMAHook')


@dataclass
class Report:
    """What a merge did, for a table.

    ``before`` and ``after`` hold ``parameters``, ``macs`` (multiply-
    accumulates for one sample), ``bytes`` (of the file) and ``seconds``
    (median for one sample).
    """

    bricks: int
    samples: int
    random: bool
    before: dict[str, float]
    after: dict[str, float]
    comparison: Comparison

    def table(self) -> str:
        """The report in Markdown."""
        before, after = self.before, self.after
        rows = [('bricks merged', '', f'{self.bricks}')]
        for name, key, unit, scale in [('parameters', 'parameters', 'M', 1e6),
                                       ('MACs', 'macs', 'M', 1e6),
                                       ('file size', 'bytes', 'MB', 1e6),
                                       ('median latency', 'seconds', 'ms',
                                        1e-3)]:
            rows.append((name, f'{before[key] / scale:,.2f} {unit}',
                         f'{after[key] / scale:,.2f} {unit}'))
        kind = 'random images' if self.random else 'real samples'
        rows.append((f'compared on {self.samples} {kind}', '', ''))
        rows += [(name, '', value) for name, value in self.comparison.rows()]
        return markdown_table(['', 'before', 'after'], rows)


def reparameterize(cfg: Config,
                   checkpoint: str | Path,
                   out: str | Path,
                   tol: float = 1e-4,
                   samples: int = 64) -> Report:
    """Merge a checkpoint and write its deploy form, verified.

    Writes ``out``, with weights and meta, and beside it, with the suffix
    ``.py``, the config that builds the deploy form. Both are written whole or
    not at all, and not before the merged model has given the same answers.

    Args:
        cfg (Config): The config that the checkpoint was trained with.
        checkpoint (str): The checkpoint, in train form: its file, or a name
            with ``vanillanet://``.
        out (str): Where to write, a name ending in ``.pth``.
        tol (float): The largest difference that is let pass, relative to the
            largest output. Defaults to 1e-4.
        samples (int): How many samples of the validation set to compare on.
            Defaults to 64.

    Returns:
        Report: What was merged and how it compares.

    Raises:
        UserError: If lambda is below 1, the difference is over ``tol``, the
            checkpoint does not fit, is merged already or is no checkpoint, or
            ``out`` cannot be written. No file is left behind then.
    """
    out = Path(out)
    source = local_path(checkpoint)
    if out.suffix != '.pth':
        raise UserError(f'the name of the output must end in .pth, got {out}')
    if not samples > 0:
        raise UserError(f'the number of samples must be positive, got '
                        f'{samples}')
    check_writable(out)
    check_writable(out.with_suffix('.py'))
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f'the output {out} is the checkpoint itself, which '
                        'must stay as it is')
    if cfg.filename and out.with_suffix('.py').exists() and os.path.samefile(
            out.with_suffix('.py'), cfg.filename):
        raise UserError(f'the config of {out} would overwrite {cfg.filename}, '
                        'which must stay as it is')

    content = load_checkpoint(checkpoint)
    meta = content.get('meta', {})
    state_dict = content.get('state_dict', content)
    deploy_cfg = make_deploy_config(cfg)
    model = build_model(cfg)
    if _is_merged(state_dict, model, deploy_cfg):
        raise UserError(f'{checkpoint} is merged already, there is nothing '
                        'left to merge')
    load_state_dict(model, state_dict, str(checkpoint))
    merged = copy.deepcopy(model)
    try:
        bricks = switch_to_deploy(merged)
    except RuntimeError as e:
        raise UserError(f'{checkpoint}: {e}') from e
    if not bricks:
        raise UserError(f'the model of {cfg.filename} has no brick to merge')

    batches = real_batches(cfg, samples)
    is_random = batches is None
    if is_random:
        batches = random_batches(cfg, samples)
    comparison = Comparison()
    with scope_of(cfg), torch.no_grad():
        for batch in batches:
            comparison.add(model, merged, batch)
    comparison.check(tol)

    # What is written must build, by its own config, what was verified.
    shipped = build_model(deploy_cfg)
    weights = merged.state_dict()
    load_state_dict(shipped, weights, 'the merged model')

    before = dict(_size(model), bytes=source.stat().st_size)
    after = _size(shipped)
    with scope_of(cfg), torch.no_grad():
        before['macs'] = _macs(model, batches[0])
        after['macs'] = _macs(shipped, batches[0])
        before['seconds'], after['seconds'] = _latencies([model, shipped],
                                                         batches[0])

    text = deploy_cfg.pretty_text
    with replace_atomically(out) as weights_path, replace_atomically(
            out.with_suffix('.py')) as config_path:
        torch.save(
            dict(
                state_dict=weights,
                meta=dict(
                    mmvanilla_version=__version__,
                    cfg=text,
                    dataset_meta=meta.get('dataset_meta', {}),
                    source_sha256=sha256(source),
                    lam=1.0,
                    max_abs_diff=comparison.max_abs,
                    max_rel_diff=comparison.max_rel)), weights_path)
        config_path.write_text(text)
        after['bytes'] = weights_path.stat().st_size
    return Report(bricks, comparison.samples, is_random, before, after,
                  comparison)


def make_deploy_config(cfg: Config) -> Config:
    """The config that builds, by itself, the deploy form of a config's model.

    What only training needs is taken out: pretrained weights, and the hooks
    that deal with lambda and with an average of the weights.
    """
    cfg = copy.deepcopy(cfg)
    _deploy_in_place(cfg.model)
    cfg.load_from = None
    cfg.resume = False
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks
            if hook['type'].split('.')[-1] not in TRAINING_HOOKS
        ]
    return cfg


def _deploy_in_place(node) -> None:
    if isinstance(node, (list, tuple)):
        for child in node:
            _deploy_in_place(child)
    elif isinstance(node, dict):
        kind = node.get('type')
        if isinstance(kind, str) and kind.split('.')[-1] in DEPLOYABLE:
            node['deploy'] = True
        if _is_pretrained(node.get('init_cfg')):
            node.pop('init_cfg')
        if node.get('pretrained'):  # as timm's networks and older ones have
            node['pretrained'] = False if node['pretrained'] is True else None
        for child in node.values():
            _deploy_in_place(child)


def _is_pretrained(init_cfg) -> bool:
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def _is_merged(state_dict: dict, model: nn.Module, deploy_cfg: Config) -> bool:
    if set(state_dict) == set(model.state_dict()):
        return any(isinstance(m, SeriesActivation) and m.deploy
                   for m in model.modules())
    return set(state_dict) == set(build_model(deploy_cfg).state_dict())


def _size(model: nn.Module) -> dict:
    return dict(parameters=sum(p.numel() for p in model.parameters()))


def _one_sample(batch: dict) -> dict:
    return {k: v[:1] for k, v in batch.items()}


def _macs(model: nn.Module, batch: dict) -> int:
    with FlopCounterMode(display=False) as counter:
        model.test_step(_one_sample(batch))
    return counter.get_total_flops() // 2


def _latencies(models: list[nn.Module],
               batch: dict,
               repeats: int = 7) -> list[float]:
    """Median seconds of each model for one sample, taken in turns."""
    batch = _one_sample(batch)
    times = [[] for _ in models]
    for repeat in range(repeats + 1):
        for model, taken in zip(models, times):
            start = time.perf_counter()
            model.test_step(copy.deepcopy(batch))
            if repeat:  # the first is a warm-up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
