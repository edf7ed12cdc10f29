# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a grid of networks that differ in one setting, with several seeds."""
import copy
import hashlib
import inspect
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmvanilla import __version__
from mmvanilla.utils.configs import read_config
from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import write_beside

# The keys of a config that are used for a run.
USED = set(inspect.signature(Runner).parameters) | {'custom_imports'}
# Settings that count epochs.
IN_EPOCHS = ('decay_epochs', 'T_max', 'begin', 'end')


@dataclass
class Row:
    """One setting of a grid, with accuracy (%) and time of each seed's run."""

    group: str  # the network, where a grid has several
    name: str
    paper: float | None = None  # the paper's accuracy on ImageNet, in percent
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample; None for one seed."""
        several = len(self.accuracies) > 1
        return statistics.stdev(self.accuracies) if several else None

    @property
    def slug(self) -> str:
        """Group and name as the name of a folder."""
        return re.sub(r'\W', '-', f'{self.group} {self.name}'.strip().lower())


@dataclass
class Ablation:
    """A grid and its results."""

    name: str
    title: str
    epochs: int
    seeds: int
    rows: list[Row]
    versions: dict[str, str] = field(default_factory=lambda: dict(
        mmvanilla=__version__, torch=torch.__version__))

    def to_json(self) -> str:
        content = asdict(self)
        for entry, row in zip(content['rows'], self.rows):
            entry.update(mean=row.mean, std=row.std)
        return json.dumps(content, indent=2) + '\n'


def run_ablation(grid: Path, out: str, seeds: int = 3,
                 epochs: int | None = None,
                 workers: int | None = None) -> Ablation:
    """Train the runs that are not finished, each in a process of one thread.

    A finished run writes ``out/runs/GRID/ROW/seed-S.json``, which is kept as
    long as its config and the versions are the same.
    """
    if min(seeds, epochs or 1, workers or 1) < 1:
        raise UserError('--seeds, --epochs and --workers must be positive')
    cfg = read_config(str(grid))
    rows = _rows(cfg)
    epochs = epochs or cfg.train_cfg.max_epochs
    results, jobs = {}, {}
    for row, entry in zip(rows, cfg.grid['rows']):
        for seed in range(seeds):
            run = run_config(cfg, entry['change'], epochs, seed)
            path = Path(out, 'runs', grid.stem, row.slug, f'seed-{seed}.json')
            run.work_dir = str(path.with_suffix(''))
            digest = _digest(run)
            results[path] = _finished(path, digest)
            if results[path] is None:
                jobs[path] = run, digest
    if len(jobs) < len(results):
        print(f'{len(results) - len(jobs)} of {len(results)} runs are '
              'finished already')
    if jobs:
        results.update(_train_all(jobs, workers or os.cpu_count() or 1))
    for path, result in results.items():
        row = next(row for row in rows if row.slug == path.parent.name)
        row.accuracies.append(result['accuracy'])
        row.seconds.append(result['seconds'])
    return Ablation(grid.stem, cfg.grid['title'], epochs, seeds, rows)


def run_config(cfg: Config, change: dict, epochs: int, seed: int) -> Config:
    """The config of one run; :data:`IN_EPOCHS` are scaled with its length."""
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(copy.deepcopy(change))
    # The grid and other variables of its file are not part of a run.
    for key in set(cfg) - USED:
        cfg.pop(key)
    ratio = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    for part in ('param_scheduler', 'custom_hooks'):
        entries = cfg.get(part) or []
        for entry in [entries] if isinstance(entries, dict) else entries:
            for key in IN_EPOCHS:
                if isinstance(entry.get(key), int) and entry[key] > 0:
                    entry[key] = max(1, math.floor(ratio * entry[key]))
    cfg.randomness = dict(seed=seed)
    return cfg


def _rows(cfg: Config) -> list[Row]:
    grid = cfg.get('grid') or {}
    if not {'title', 'rows'} <= set(grid) or any(
            not {'name', 'change'} <= set(row) for row in grid['rows']):
        raise UserError(f'{cfg.filename} is no grid: it must have a "grid" of '
                        'a title and rows, each with a name and a change')
    if 'max_epochs' not in cfg.get('train_cfg', {}):
        raise UserError(f'the train_cfg of {cfg.filename} has no max_epochs')
    rows = [Row(row.get('group', ''), row['name'], row.get('paper'))
            for row in grid['rows']]
    if not 0 < len(rows) == len({row.slug for row in rows}):
        raise UserError(f'the rows of {cfg.filename} must be one or more, of '
                        'different names')
    return rows


def _digest(cfg: Config) -> str:
    content = {k: v for k, v in cfg.to_dict().items() if k != 'work_dir'}
    text = json.dumps([content, __version__, torch.__version__],
                      sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(path: Path, digest: str) -> dict | None:
    try:
        result = json.loads(path.read_text())
        return result if result['config'] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _train_all(jobs: dict[Path, tuple], workers: int) -> dict[Path, dict]:
    pool = ThreadPoolExecutor(workers)

    def train(path: Path, run: Config, digest: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        config = path.with_suffix('.py')
        run.dump(config)
        done = subprocess.run(
            [sys.executable, __file__, config, path, digest],
            env=dict(os.environ, OMP_NUM_THREADS='1'), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ['it was killed']
            raise UserError(f'the run {config} failed: {lines[-1]}')
        print('finished', path, flush=True)

    try:
        for job in as_completed([pool.submit(train, path, *job)
                                 for path, job in jobs.items()]):
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return {path: json.loads(path.read_text()) for path in jobs}


def _train_one(config: str, path: str, digest: str) -> None:
    cfg = Config.fromfile(config)
    start = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    runner.train()
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    result = dict(config=digest, accuracy=float(accuracy),
                  seconds=time.perf_counter() - start)
    with write_beside(path) as (temporary, ):
        temporary.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    _train_one(*sys.argv[1:])
