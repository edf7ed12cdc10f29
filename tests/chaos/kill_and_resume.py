#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Kill training runs, resume them, and compare them with undisturbed ones.

Half of the kills come at a random moment, half between two steps of writing
files. After each, all checkpoints must read whole and the best one be there.
The resumed run must have the lambda and learning rate of the undisturbed one,
an average (EMA) with that lambda, and end within a point of its accuracy.
"""
import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.hooks import Hook  # noqa: E402
from mmpretrain.registry import HOOKS  # noqa: E402
from tiny import lams, read, tiny_cfg  # noqa: E402

from mmvanilla.engine.runs import train  # noqa: E402
from mmvanilla.layers import find_activations  # noqa: E402
from mmvanilla.utils.errors import UserError  # noqa: E402

EPOCHS = 4


@HOOKS.register_module()
class Record(Hook):
    """Append lambda and learning rate of each iteration to WORK_DIR.steps."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        lam, = {x.lam for x in find_activations(runner.model).values()}
        rate = runner.optim_wrapper.get_lr()['lr'][0]
        with open(f'{runner.work_dir}.recipe', 'a') as file:
            file.write(f'{runner.iter} {lam} {rate}\n')


def write_config(path: Path, ema: bool, keep: int) -> None:
    """A checkpoint after each epoch and the best, on images that are easy."""
    cfg = tiny_cfg('unused', epochs=EPOCHS)
    cfg.pop('work_dir')
    cfg.model.backbone.arch = dict(dims=[16, 32, 32], strides=[2, 1])
    cfg.model.head.in_channels = 32
    cfg.train_dataloader.dataset.indices = 1440
    cfg.train_dataloader.batch_size = 60
    cfg.val_dataloader.dataset.indices = 355
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.default_hooks.checkpoint.update(
        max_keep_ckpts=keep, save_best='accuracy/top1')
    cfg.custom_hooks.append(dict(type='Record'))
    if ema:
        cfg.custom_hooks.append(
            dict(type='EMAHook', momentum=0.1, update_buffers=True))
    cfg.dump(path)


def die_at(step: int, folder: Path) -> list[int]:
    """Kill this process at a step, from 1, of its operations on files.

    Only those in ``folder`` count. The list holds how many there were so far.
    """
    count = [0]

    def tick(path) -> None:
        if str(folder) in str(path) and '.log' not in str(path):
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(module, name):
        original = getattr(module, name)

        def wrapped(path, *args, **kwargs):
            tick(path)
            result = original(path, *args, **kwargs)
            tick(path)
            return result

        setattr(module, name, wrapped)

    for module, name in [(os, 'replace'), (os, 'rename'), (os, 'unlink'),
                         (os, 'remove'), (shutil, 'rmtree')]:
        around(module, name)

    class Halves(io.FileIO):
        """A file that is half written for a moment."""

        def write(self, content) -> int:
            half = len(content) // 2
            super().write(content[:half])
            tick(self.name)
            return half + super().write(content[half:])

    original = io.open

    def opened(file, mode='r', *args, **kwargs):
        if mode == 'wb' and str(folder) in str(file):
            return Halves(str(file), 'w')
        return original(file, mode, *args, **kwargs)

    io.open = opened
    return count


def start(config: Path, work: Path, resume: bool, step: int = 0) -> int:
    """Fork a run; its process id."""
    resume = resume and any(work.glob('epoch_*.pth'))
    return fork(partial(train, str(config), work_dir=str(work),
                        resume='auto' if resume else None), work, step)


def fork(task: Callable, folder: Path, step: int) -> int:
    """Fork a task, which saves the imports; counts go to FOLDER.steps."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(folder.with_suffix('.log'), 'ab') as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        count = die_at(step, folder)
        task()
        folder.with_suffix('.steps').write_text(str(count[0]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def recipe(work: Path) -> dict[int, tuple]:
    """Lambda and learning rate by iteration, the later of two runs."""
    lines = work.with_suffix('.recipe').read_text().splitlines()
    return {int(i): values for i, *values in map(str.split, lines)}


def accuracies(work: Path) -> dict[int, float]:
    """Of each validation, by its epoch."""
    lines = [json.loads(line)
             for path in sorted(work.glob('*/vis_data/scalars.json'))
             for line in path.read_text().splitlines() if line[-1:] == '}']
    return {x['step']: x['accuracy/top1'] for x in lines
            if 'accuracy/top1' in x}


def lost(work: Path) -> list[str]:
    """Checkpoints that a kill left cut short or removed too early."""
    wrong, infos = [], {}
    for path in work.glob('*.pth'):
        try:
            content = read(path)
            infos[content['meta']['iter']] = content['message_hub'][
                'runtime_info']
        except UserError as e:
            wrong.append(str(e))
    best = infos[max(infos)].get('best_ckpt') if infos else None
    if best and not Path(best).is_file():
        wrong.append('the best checkpoint')
    return wrong


def compare(work: Path, expected: Path) -> list[str]:
    wrong = lost(work)
    if recipe(work) != recipe(expected):
        wrong.append('lambda or learning rate')
    content = read(work / f'epoch_{EPOCHS}.pth')
    for key in {'state_dict', 'ema_state_dict'} & content.keys():
        if lams(content[key]) != {1.0}:
            wrong.append(f'lambda in {key}')
    found, wanted = accuracies(work), accuracies(expected)
    last = max(found)  # mmengine does not make up for one that was killed
    if last < EPOCHS - 1 or abs(found[last] - wanted[last]) > 1:
        wrong.append(f'accuracy {found[last]}, not {wanted[last]}')
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=60)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix='kill_and_resume-'))
    variants = [(ema, keep) for keep in (1, 3) for ema in (True, False)]
    failures = 0
    references = {}
    for ema, keep in variants[:args.kills]:
        config = folder / f'ema{ema:d}_keep{keep}.py'
        write_config(config, ema, keep)
        expected = folder / f'{config.stem}_undisturbed'
        began = time.perf_counter()
        if wait(start(config, expected, resume=False)) != 0:
            sys.exit(expected.with_suffix('.log').read_text())
        references[ema, keep] = (config, expected, time.perf_counter() - began)
    for i in range(args.kills):
        config, expected, seconds = references[variants[i // 2 % 4]]
        work = folder / f'run_{i}'
        if i % 2:
            steps = int(expected.with_suffix('.steps').read_text())
            step = rng.randint(1, steps)
            how = f'at step {step} of {steps}'
            wait(start(config, work, resume=False, step=step))
        else:
            moment = rng.uniform(0.1, 1) * seconds
            how = f'after {moment:.2f} of {seconds:.2f} s'
            pid = start(config, work, resume=False)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            wait(pid)
        wrong = lost(work)
        code = wait(start(config, work, resume=True))
        wrong += ['exit code'] if code else compare(work, expected)
        print(f'{i + 1}: {config.stem} killed {how}: '
              f'{", ".join(wrong[:5]) or "right"}', flush=True)
        failures += bool(wrong)
    print(f'{failures} of {args.kills} runs went wrong' +
          f': see {folder}' * bool(failures))
    if not failures:
        shutil.rmtree(folder)
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
