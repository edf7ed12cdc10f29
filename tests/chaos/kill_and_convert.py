#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Kill reparam, convert and export while they write, and look at what is left.

Each kill comes between two steps of writing files, half of them over older
outputs. What is read must be untouched, and each output must be the old or the
new one, whole. The next run must write all of them. Temporary folders beside
the outputs may stay.
"""
import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from kill_and_resume import fork, wait

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from narrow import randomize  # noqa: E402
from tiny import tiny_cfg  # noqa: E402

from mmvanilla.checkpoints import convert  # noqa: E402
from mmvanilla.export import export  # noqa: E402
from mmvanilla.reparam import reparameterize  # noqa: E402
from mmvanilla.utils.configs import build_model, read_config  # noqa: E402


def make_tasks(inputs: Path, out: Path) -> dict[str, Callable[[str], None]]:
    """What is killed: functions of the name of a checkpoint."""
    cfg = read_config(str(inputs / 'config.py'))
    return dict(
        reparam=lambda name: reparameterize(
            cfg, inputs / f'{name}.pth', out / 'out.pth', samples=2,
            force=True),
        convert=lambda name: convert(
            inputs / f'{name}.pth', out / 'out.pth', 'authors', force=True),
        onnx=lambda name: export(cfg, inputs / f'{name}.pth', out / 'out.onnx',
                                 samples=2, force=True),
        openvino=lambda name: export(
            cfg, inputs / f'{name}.pth', out / 'out.xml', 'openvino',
            samples=2, force=True))


def write_inputs(folder: Path) -> None:
    """A config and two checkpoints of its network."""
    folder.mkdir()
    cfg = tiny_cfg('unused')
    cfg.pop('work_dir')
    cfg.dump(folder / 'config.py')
    for seed, name in enumerate(('old', 'new')):
        model = build_model(cfg)
        randomize(model, seed)
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')


def run(task: Callable, name: str, out: Path, step: int = 0) -> int:
    return wait(fork(partial(task, name), out, step))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes()
            for path in folder.iterdir() if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--kills', type=int, default=20, help='of each task; defaults to 20')
    parser.add_argument('--tasks', nargs='+', help='which; defaults to all')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    folder = Path(tempfile.mkdtemp(prefix='kill_and_convert-'))
    inputs, out = folder / 'inputs', folder / 'out'
    write_inputs(inputs)
    before = contents(inputs)
    failures, tasks = 0, make_tasks(inputs, out)
    for name in args.tasks or tasks:
        whole = {}
        for weights in ('old', 'new'):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            if run(tasks[name], weights, out):
                sys.exit(out.with_suffix('.log').read_text())
            whole[weights] = contents(out)
        steps = int(out.with_suffix('.steps').read_text())
        for i in range(args.kills):
            old = whole['old'] if i % 2 else {}
            shutil.rmtree(out)
            out.mkdir()
            for file, content in old.items():
                (out / file).write_bytes(content)
            step = rng.randint(1, steps)
            run(tasks[name], 'new', out, step)
            left = contents(out)
            wrong = [file for file in left if left[file] not in (
                old.get(file), whole['new'][file])]
            if run(tasks[name], 'new', out) or contents(out) != whole['new']:
                wrong.append('the next run')
            if contents(inputs) != before:
                wrong.append('what is read')
            failures += bool(wrong)
            print(f'{name} {i + 1}: killed at step {step} of {steps}, '
                  f'{"over old" if old else "anew"}, left {sorted(left)}: '
                  f'{", ".join(wrong) or "right"}', flush=True)
    print(f'{failures} kills left something wrong')
    shutil.rmtree(folder)
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
