#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Kill reparam, convert and export while they write, and look at what is left.

Half of the kills come at a random moment, half between two steps of writing
files. Half find older outputs in place. After each kill, what is read must be
untouched, an output must be the old or the new one, whole, and no new output
may lie beside an old one. The next run must leave all outputs, and nothing
else.
"""
import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from kill_and_resume import die_at, wait

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations import randomize  # noqa: E402
from tiny import tiny_cfg  # noqa: E402

from mmvanilla.checkpoints import convert  # noqa: E402
from mmvanilla.export.export import export  # noqa: E402
from mmvanilla.reparam import reparameterize  # noqa: E402
from mmvanilla.utils.building import build_model, read_config  # noqa: E402


def tasks(inputs: Path, out: Path) -> dict[str, Callable[[str], None]]:
    """What is killed: functions of the name of a checkpoint."""
    cfg = read_config(str(inputs / 'config.py'))

    def to_export(name: str, suffix: str, backend: str) -> None:
        export(cfg, inputs / f'{name}.pth', out / f'out{suffix}', backend,
               samples=2)

    return dict(
        reparam=lambda name: reparameterize(
            cfg, inputs / f'{name}.pth', out / 'out.pth', samples=2),
        to_authors=lambda name: convert(
            inputs / f'{name}.pth', out / 'out.pth', 'authors'),
        from_authors=lambda name: convert(
            inputs / f'{name}_official.pth', out / 'out.pth'),
        onnx=lambda name: to_export(name, '.onnx', 'onnx'),
        openvino=lambda name: to_export(name, '.xml', 'openvino'))


def write_inputs(folder: Path) -> None:
    """Two checkpoints of one network, in both formats."""
    folder.mkdir()
    cfg = tiny_cfg('unused')
    cfg.pop('work_dir')
    cfg.dump(folder / 'config.py')
    for seed, name in enumerate(('old', 'new')):
        model = build_model(cfg)
        randomize(model, seed)
        torch.save(dict(state_dict=model.state_dict()),
                   folder / f'{name}.pth')
        convert(folder / f'{name}.pth', folder / f'{name}_official.pth',
                'authors')


def start(task: Callable, name: str, out: Path, step: int = 0) -> int:
    """Fork a run; its process id. Counts go to OUT.steps."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(out.with_suffix('.log'),
                      os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = die_at(step, out)
        task(name)
        out.with_suffix('.steps').write_text(str(count[0]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()).hexdigest()
        for path in folder.rglob('*') if path.is_file()
    }


def what_is_wrong(found: dict, old: dict, new: dict) -> list[str]:
    """Problems of the outputs that a kill left."""
    found = {k: v for k, v in found.items() if not k.startswith('.mmv')}
    wrong = [f'{name} is neither old nor new' for name in found
             if found[name] not in (old.get(name), new.get(name))]
    kinds = {'new' if found[name] == new.get(name) else 'old'
             for name in found if old.get(name) != new.get(name)}
    return wrong + (['new beside old'] if len(kinds) > 1 else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--kills', type=int, default=40, help='of each task; defaults to 40')
    parser.add_argument('--tasks', nargs='+', help='which; defaults to all')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix='kill_and_convert-'))
    inputs, out = folder / 'inputs', folder / 'out'
    write_inputs(inputs)
    before = contents(inputs)
    failures = 0
    functions = tasks(inputs, out)
    for name in args.tasks or functions:
        results = []
        for weights in ('old', 'new'):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            began = time.perf_counter()
            if wait(start(functions[name], weights, out)):
                sys.exit(out.with_suffix('.log').read_text())
            seconds = time.perf_counter() - began
            results.append(contents(out))
            if weights == 'old':
                kept = shutil.copytree(out, folder / f'kept_{name}')
        old, new = results
        steps = int(out.with_suffix('.steps').read_text())
        for i in range(args.kills):
            has_old = i // 2 % 2
            shutil.rmtree(out)
            if has_old:
                shutil.copytree(kept, out)
            else:
                out.mkdir()
            if i % 2:
                step = rng.randint(1, steps)
                how = f'step {step} of {steps}'
                wait(start(functions[name], 'new', out, step))
            else:
                moment = rng.uniform(0.2, 1) * seconds
                how = f'{moment:.2f} of {seconds:.2f} s'
                pid = start(functions[name], 'new', out)
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
                wait(pid)
            left = contents(out)
            wrong = what_is_wrong(left, old if has_old else {}, new)
            if wait(start(functions[name], 'new', out)):
                wrong.append('the next run failed: '
                             + out.with_suffix('.log').read_text()[-500:])
            elif set(contents(out)) != set(new):
                wrong.append(f'the next run left {sorted(contents(out))}')
            elif what_is_wrong(contents(out), {}, new):
                wrong.append('the next run wrote something else')
            if contents(inputs) != before:
                wrong.append('what is read has changed')
            failures += bool(wrong)
            print(f'{name} {i + 1}: killed at {how}, '
                  f'{"over old" if has_old else "anew"}, left '
                  f'{sorted(left)}: {"; ".join(wrong) or "right"}', flush=True)
    print(f'{failures} kills left something wrong')
    shutil.rmtree(folder)
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
