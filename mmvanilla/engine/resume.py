# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Resume a run: find its checkpoint, compare it with the config."""
import re
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from ..checkpoints import load_checkpoint, safe_reading
from ..utils.errors import UserError
from ..utils.terminal import some
from .class_names import class_names


class ResumeHook(Hook):
    """Compare a run with the one that it resumes."""

    priority = 'HIGHEST'  # before others compare the weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse other classes; warn where nothing is left to train."""
        if not runner.cfg.get('resume'):
            return
        source, meta = runner.cfg.load_from, checkpoint['meta']
        old = list((meta.get('dataset_meta') or {}).get('classes') or ())
        new = class_names(runner.train_dataloader.dataset)
        if old and new and old != new:
            # Of many, those that differ.
            pairs = [(names, [f'{i}: {x}' for i, x in enumerate(names)
                              if [x] != list(others[i:i + 1])])
                     for names, others in ((old, new), (new, old))]
            old, new = (some(names, 12) if len(names) <= 12 else
                        f'{len(names)} names, {some(different, 6) or "fewer"}'
                        for names, different in pairs)
            raise UserError(
                f'cannot resume from {source}: its classes are {old}, but '
                f'those of the data {new}; use the same data, or start from '
                f'its weights with --cfg-options load_from={source}')
        loop = runner.train_loop
        name, done, most = ('epochs', meta['epoch'], loop.max_epochs) if (
            hasattr(loop, 'run_epoch')) else (
            'iters', meta['iter'], loop.max_iters)
        if done >= most:
            runner.logger.warning(
                f'{source} has trained {done} of {most} {name}: nothing is '
                f'left to do; a larger train_cfg.max_{name} goes on.')


def find_checkpoint(work_dir: str) -> tuple[str, list[str]]:
    """The last checkpoint that can be resumed, and why later ones cannot."""
    numbers = {path: int(path.stem.rpartition('_')[2])
               for path in Path(work_dir).glob('*.pth')
               if re.fullmatch(r'(epoch|iter)_\d+', path.stem)}
    saved, reasons = {}, []
    for path in sorted(numbers, key=numbers.get, reverse=True):
        # Numbers mislead after an earlier run, times of files in a copy.
        try:
            with safe_reading(str(path)):
                meta = torch.load(path, 'cpu', mmap=True)['meta']
            saved[path] = str(meta.get('time')), numbers[path]
        except Exception as e:
            text = str(e)
            reasons.append(text if str(path) in text else f'{path}: {text}')
    for path in sorted(saved, key=saved.get, reverse=True):
        try:
            check_resumable(str(path))
            return str(path), reasons
        except UserError as e:
            reasons.append(str(e))
    raise UserError('; '.join([
        f'nothing to resume in {work_dir}: it holds no checkpoint epoch_N.pth '
        'or iter_N.pth that reads whole; name the right --work-dir, or train '
        'without --resume', *reasons]))


def check_resumable(checkpoint: str) -> None:
    """Refuse a checkpoint that holds no state of a training run."""
    content = load_checkpoint(checkpoint)
    if {'optimizer', 'message_hub', 'meta'} - {*content}:
        raise UserError(
            f'cannot resume from {checkpoint}: it holds no state of the '
            'optimizer, as merged, best and official ones; resume from an '
            'epoch_N.pth or iter_N.pth, or start from its weights with '
            f'--cfg-options load_from={checkpoint}')
    meta, optimizer = content['meta'], content['optimizer']
    try:
        MessageHub('check').load_state_dict(dict(content['message_hub']))
        for state in [optimizer] if 'param_groups' in optimizer else (
                optimizer.values()):
            {**state['state']}, [{**x}['params'] for x in state[
                'param_groups']]
        range(meta['epoch'], meta['iter'])
        {**(meta.get('dataset_meta') or {})}
    except Exception as e:
        raise UserError(
            f'cannot resume from {checkpoint}: its optimizer, message_hub or '
            f'meta is not what mmengine writes ({type(e).__name__}: {e})'
        ) from e
