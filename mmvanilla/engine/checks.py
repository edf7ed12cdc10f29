# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Find before the first epoch what would fail, or be wrong unseen, later."""
import copy
import logging
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import ValLoop, autocast
from mmengine.structures import InstanceData
from mmengine.utils import is_method_overridden
from mmpretrain.models import BaseClassifier
from torch import nn

from ..checkpoints import load_checkpoint
from ..utils.cfg_options import nearest
from ..utils.configs import type_name
from ..utils.errors import UserError
from ..utils.files import check_output
from ..utils.terminal import some
from .classes import check_class_names, check_labels, class_names
from .hooks.deep_training_hook import flatten, unwrap_model
from .hooks.reparameterize_hook import ReparameterizeHook
from .launch import explain


def check_run(runner) -> None:
    """Refuse a built run; all processes call this, and all refuse."""
    problem, error, tried = None, None, ['']
    try:
        _check(runner, tried)
    except Exception as e:  # of the data, the network or a metric, too
        error = e
        problem = str(e) if isinstance(e, UserError) else tried[-1] + (
            explain(e) or f'{type(e).__name__}: {e}')
    problem = next(filter(None, all_gather_object(problem)), None)
    if problem:
        raise UserError(' '.join(problem.split())) from error


def _check(runner, tried: list) -> None:
    for name in ('train', 'val'):
        loader = runner.cfg.get(f'{name}_dataloader') or {}
        if isinstance(loader.get('dataset'), dict):
            check_class_names(name, loader.dataset, runner.logger)
    loops = dict(train=runner.train_loop, val=runner.val_loop)
    for name in filter(loops.get, loops):
        _check_loader(name, loops[name])
    for hook in runner.hooks:
        if isinstance(hook, ReparameterizeHook):
            check_outputs(runner)
    model = unwrap_model(runner.model)
    if not isinstance(model, nn.Module):  # a strategy builds it later
        return
    count = len(class_names(runner.train_dataloader.dataset))
    heads = r'(roi_head\.)?((decode|auxiliary|bbox|mask)_)?head(\.\d+)?'
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        if re.fullmatch(heads, name) and number in range(1, count):
            raise UserError(f'model.{name}.num_classes is {number}, but the '
                            f'data have {count} classes')
    if isinstance(model, BaseClassifier):
        check_labels(runner, loops, model)
    with _undone(runner, model):
        if isinstance(model, BaseClassifier):
            for batch in _batches('train', loops['train'], tried):
                # A SyncBN in training mode would wait for other processes.
                model.train(get_world_size() == 1)
                model(**model.data_preprocessor(batch, True), mode='loss')
            model.eval()
        metrics = _validate(runner, model, tried) if loops['val'] else None
    if metrics is not None:
        _check_monitors(runner, metrics)


@contextmanager
def _undone(runner, model: nn.Module) -> Iterator[None]:
    """Keep random numbers and modes; log nothing."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(x, x.clone()) for x in model.buffers()]
    python, numpy = random.getstate(), np.random.get_state()
    level, device = runner.logger.level, next(model.parameters()).device
    runner.logger.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng([device] * (device.type == 'cuda')), (
                torch.no_grad()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)
        runner.logger.setLevel(level)


def _check_loader(name: str, loop) -> None:
    loader = loop.dataloader
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    kind = type(sampler).__name__
    if kind in ('InfiniteSampler', 'MultiSourceSampler') and (
            name == 'val' or hasattr(loop, 'run_epoch')):
        raise UserError(
            f'{name}_dataloader.sampler is {kind}, with which an epoch never '
            'ends: use DefaultSampler, or, to train, a loop of iterations '
            '(by_epoch=False and max_iters in train_cfg)')
    if hasattr(loader.dataset, '__len__') and not len(loader):
        raise UserError(
            f'{name}_dataloader yields no batch of {loader.batch_size} from '
            f'{len(loader.dataset)} samples: change batch_size or drop_last')


def check_outputs(runner) -> None:
    """Refuse files of others where ReparameterizeHook writes its own."""
    out = Path(runner.work_dir, 'deploy.pth')
    paths = [out, out.with_suffix('.py')]
    try:
        for path in paths:
            check_output(path, filter(None, (
                runner.cfg.get('load_from'), runner.cfg.filename)), True)
        found = [path for path in paths if path.exists()]
        if found and 'mmvanilla_version' not in (
                out in found and load_checkpoint(out).get('meta') or ()):
            raise UserError(f'{found[0]} was not written by a merge')
    except UserError as e:
        raise UserError(f'ReparameterizeHook would fail: {e}; move the file, '
                        'or use another --work-dir') from e


def _batches(name: str, loop, tried: list) -> Iterator:
    """Two batches of at most two samples, spread over the data."""
    loader = loop.dataloader
    data, size = loader.dataset, min(2, loader.batch_size or 2)
    last = len(data) - 1 if hasattr(data, '__len__') else -1
    if name == 'train' and not loader.drop_last and last >= 0 and (
            loader.batch_size or 1) > 1 and len(
                loader.sampler) % loader.batch_size == 1:
        size = 1  # as the last batch
    where = [*{0: 0, last: 0, last // 3: 0, 2 * last // 3: 0}] * (last >= 0)
    for i in range(0, len(where[:2 * size]), size):
        tried.append('')
        batch = loader.collate_fn([data[j] for j in where[i:i + size]])
        images = batch.get('inputs', ' ') if isinstance(batch, dict) else batch
        shape = ' x '.join(map(str, getattr(images[0], 'shape', '')))
        tried.append(f'the {name} images, of {shape}: ')
        yield batch


def _validate(runner, model: nn.Module, tried: list) -> dict | None:
    """The metrics of two batches; None where a loop does more than that."""
    loop, ids, found = runner.val_loop, [], {}
    if (type(loop), type(loop.evaluator)) != (ValLoop, Evaluator) or any(
            is_method_overridden('evaluate', BaseMetric, x)
            for x in loop.evaluator.metrics):
        return None
    evaluator = runner.build_evaluator(copy.deepcopy(runner.cfg.val_evaluator))
    evaluator.dataset_meta = getattr(loop.dataloader.dataset, 'metainfo', None)
    metrics = evaluator.metrics = [
        x for x in evaluator.metrics if not isinstance(x, DumpResults)]
    names = ', '.join(type(x).__name__ for x in metrics)
    for batch in _batches('val', loop, tried):
        with autocast(enabled=loop.fp16):
            outputs = [x.cpu() if hasattr(x, 'cpu') else x
                       for x in model.val_step(batch)]
        for sample in outputs:
            ids.append(getattr(sample, 'img_id', None))
            boxes = getattr(sample, 'pred_instances', None)
            if boxes is not None and not len(boxes):
                # Without any, CocoMetric names no metric.
                sample.pred_instances = InstanceData(**{
                    k: v.new_zeros(1, *v.shape[1:]) for k, v in boxes.items()})
        tried.append(f'val_evaluator ({names}), tried on a few samples: ')
        evaluator.process(outputs, batch)
    for metric in metrics:
        if type(metric).__name__ == 'CocoMetric':  # for all images otherwise
            metric.img_ids, metric.outfile_prefix = ids, None
        # `evaluate` would wait for other processes.
        for key, value in metric.compute_metrics(metric.results).items():
            found['/'.join(filter(None, (metric.prefix, key)))] = value
    return found


def _check_monitors(runner, metrics: dict) -> None:
    """Compare names of metrics with those that validation gives."""
    wanted = [(f'{type_name(x)}.monitor', x.get('monitor', 'loss'))
              for x in flatten(runner.cfg.get('param_scheduler'))
              if 'Plateau' in type_name(x)]
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            wanted.append(('EarlyStoppingHook.monitor', hook.monitor))
        if isinstance(hook, CheckpointHook) and hook.save_best:
            names = hook.key_indicators
            if names == ['auto'] and metrics:  # mmengine infers the rule
                names = CheckpointHook(
                    save_best=[*metrics][0], less_keys=hook.less_keys,
                    greater_keys=hook.greater_keys).key_indicators
            wanted += [('save_best', x) for x in names]
    for key, name in wanted:
        if name not in metrics:
            near = nearest(name, metrics)
            raise UserError(f'{key} is {name}, but validation gives ' + (
                some([*metrics], 12) or 'no metric') + (
                f'; did you mean {near}?' if near else ''))
        if np.ndim(metrics[name]):
            raise UserError(f'{key} is {name}, which is not a number')
