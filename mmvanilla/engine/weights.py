# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Find the checkpoint to resume from, and check what a run loads."""
import re
from pathlib import Path

import torch
from mmengine.hooks import Hook

from ..checkpoints import (
    leave_out_configs,
    load_checkpoint,
    load_state_dict,
    safe_reading,
)
from ..checkpoints.read import check_content
from ..utils.errors import UserError
from ..utils.terminal import some
from .classes import class_names
from .hooks.deep_training_hook import unwrap_model


class WeightsHook(Hook):
    """Refuse weights that do not fit, where mmengine logs them and goes on."""

    priority = 'HIGHEST'  # before EMAHook copies the loaded weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Load the weights strictly, except for a head of other classes."""
        source, resume = str(runner.cfg.load_from), runner.cfg.get('resume')
        check_content(checkpoint, source, Path(source).absolute())
        leave_out_configs(checkpoint)  # mmengine would run them as Python
        _compare_classes(runner, source, checkpoint.get('meta'), resume)
        if resume:
            _find_best(runner, checkpoint.get('message_hub') or {})
        if hasattr(runner, 'strategy'):  # may have sharded the parameters
            return
        model = unwrap_model(runner.model)
        weights = checkpoint.get('state_dict', checkpoint)
        left_out = load_state_dict(model, weights, source, start=not resume)
        if left_out:
            runner.logger.warning(f'{source}: {left_out}')
        if not resume:
            # What mmengine and EMAHook load next fits; the state dict of a
            # run with an average is that average.
            checkpoint['state_dict'] = model.state_dict()
            checkpoint.pop('ema_state_dict', None)
            return
        merged = sorted(weights.keys() - model.state_dict().keys())
        if merged:
            raise UserError(
                f'cannot resume from {source}: it is in an earlier form than '
                f'the model, which has no {merged[0]}; resume in that form, '
                'or start from its weights with --cfg-options load_from')
        for hook in runner.hooks:
            if hasattr(hook, 'ema_model') and 'ema_state_dict' in checkpoint:
                load_state_dict(hook.ema_model, checkpoint['ema_state_dict'],
                                f'ema_state_dict of {source}')


def _find_best(runner, message_hub: dict) -> None:
    """Let the best checkpoint be that of a work dir that was copied."""
    info = message_hub.get('runtime_info') or {}
    for name in [x for x in info if x.startswith('best_ckpt')]:
        path = Path(runner.work_dir, Path(str(info[name])).name)
        if path.is_file():
            info[name] = str(path)
        elif not Path(str(info[name])).is_file():
            runner.logger.warning(f'The best checkpoint, {info.pop(name)}, is '
                                  'not there: the best one counts from here')
            info.pop(name.replace('ckpt', 'score'), None)


def _compare_classes(runner, source: str, meta, resume: bool) -> None:
    trained = meta.get('dataset_meta') if isinstance(meta, dict) else None
    old = list((trained or {}).get('classes') or ())
    new = class_names(runner.train_dataloader.dataset)
    if not resume and len(old) == len(new) and old != new:
        runner.logger.warning(
            f'The head of {source} was trained for {some(old, 12)}, and is '
            f'kept, but the data have {some(new, 12)}')
    elif resume and old and new and old != new:
        if len(old + new) > 24:  # those that differ
            old, new = ([f'{len(names)} names'] + [
                f'{i}: {x}' for i, x in enumerate(names)
                if [x] != others[i:i + 1]]
                for names, others in ((old, new), (new, old)))
        raise UserError(
            f'cannot resume from {source}: its classes are {some(old, 12)}, '
            f'but those of the data {some(new, 12)}; use the same data, or '
            f'start from its weights with --cfg-options load_from={source}')


def find_checkpoint(work_dir: str) -> tuple[str, list[str]]:
    """The last checkpoint that can be resumed, and why later ones cannot."""
    saved, reasons = {}, []
    for path in sorted(Path(work_dir).glob('*.pth'), reverse=True):
        number = re.fullmatch(r'(epoch|iter)_(\d+)', path.stem)
        # Numbers mislead after an earlier run, times of files in a copy.
        try:
            with safe_reading(str(path)):
                if number:
                    meta = torch.load(path, 'cpu', mmap=True)['meta']
                    saved[path] = str(meta.get('time')), int(number[2])
        except Exception as e:
            reasons.append(str(e) if str(path) in str(e) else f'{path}: {e}')
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
    if not all(isinstance(content.get(x), dict)
               for x in ('optimizer', 'message_hub', 'meta')):
        raise UserError(
            f'cannot resume from {checkpoint}: it holds no state of the '
            'optimizer, as merged, best and official ones; resume from an '
            'epoch_N.pth or iter_N.pth, or start from its weights with '
            f'--cfg-options load_from={checkpoint}')
