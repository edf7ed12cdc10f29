#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Kill training runs, resume them, and compare them with undisturbed ones.

Half of the kills come at a random moment, half between two steps of writing
files: inside a write, before and after a rename or a removal. A run is bit
identical if its last and its best checkpoint are: weights, averaged weights,
optimizer, schedulers, random states, best score.

Imports take longer than a run, so each run is a fork of one warm process.
"""
import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny import read, tiny_cfg  # noqa: E402

from mmvanilla.engine.train import train  # noqa: E402

EPOCHS = 4


def write_config(path: Path, ema: bool, keep: int) -> None:
    """Dropout, mixup, random crops, a checkpoint each epoch and the best."""
    cfg = tiny_cfg('unused', epochs=EPOCHS)
    cfg.pop('work_dir')
    pipeline = [
        dict(type='Resize', scale=36, interpolation='bicubic'),
        dict(type='RandomCrop', crop_size=32),
        dict(type='PackInputs'),
    ]
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.model.head.dropout = 0.2
    cfg.model.train_cfg = dict(augments=dict(type='Mixup', alpha=0.5))
    cfg.default_hooks.checkpoint.update(
        max_keep_ckpts=keep, save_best='accuracy/top1')
    if ema:
        cfg.custom_hooks.append(
            dict(type='EMAHook', momentum=0.1, update_buffers=True))
    cfg.dump(path)


def die_at(step: int, folder: Path) -> list[int]:
    """Kill this process at a step of its file operations in a folder.

    Args:
        step (int): Which, from 1; 0 counts them alone.
        folder (Path): Operations elsewhere do not count.

    Returns:
        list[int]: Holds how many there have been so far.
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
    """Fork a run; its process id. Counts go to WORK.steps."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(work.with_suffix('.log'),
                      os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = die_at(step, work)
        nothing = resume and not list(work.glob('epoch_*.pth'))
        train(str(config), str(work),
              resume='auto' if resume and not nothing else None)
        work.with_suffix('.steps').write_text(str(count[0]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(a, b, where: str = '') -> list[str]:
    """Paths of all that differs in two trees of tensors and numbers."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and torch.equal(a, b)
        return [] if same else [where]
    if type(a) is not type(b):
        return [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f'{where} keys']
        return [d for k in a for d in differences(a[k], b[k], f'{where}.{k}')]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f'{where} length']
        return [d for i, (x, y) in enumerate(zip(a, b))
                for d in differences(x, y, f'{where}.{i}')]
    return [] if a == b else [where]


def state(path: Path) -> dict:
    """What must be identical in a checkpoint."""
    content = read(path)
    info = content['message_hub']['runtime_info']
    content['best_score'] = info.get('best_score')
    content['kept'] = info.get('keep_ckpt_ids')
    for name in ('meta', 'message_hub'):  # times and folders
        content.pop(name)
    return content


def compare(work: Path, expected: Path) -> list[str]:
    names, others = ({p.name for p in folder.glob('*.pth')}
                     for folder in (work, expected))
    if names != others:
        return [f'files {sorted(names)}, not {sorted(others)}']
    if (work / 'last_checkpoint').read_text() != str(
            work / f'epoch_{EPOCHS}.pth'):
        return ['last_checkpoint']
    return [d for name in sorted(names)
            for d in differences(state(work / name), state(expected / name),
                                 name)]


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
        references[ema, keep] = (config, expected,
                                 time.perf_counter() - began)
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
        left = sorted(p.name for p in work.glob('*.pth'))
        code = wait(start(config, work, resume=True))
        wrong = ['exit code'] if code else compare(work, expected)
        print(f'{i + 1}: {config.stem} killed {how}, with {left}: '
              f'{"different: " + ", ".join(wrong[:5]) if wrong else "same"}',
              flush=True)
        if wrong:
            failures += 1
            print(f'  see {work}.log')
        else:
            shutil.rmtree(work)
    print(f'{args.kills - failures} of {args.kills} runs ended bit-identical '
          'to an undisturbed one')
    if not failures:
        shutil.rmtree(folder)
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
