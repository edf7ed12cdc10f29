# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a grid of networks that differ in one setting, with several seeds."""
import copy
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import ProgressBar, import_modules_from_strings

from mmvanilla import __version__
from mmvanilla.utils.building import read_config
from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import check_output, replace_atomically

METRIC = 'accuracy/top1'
# The keys of a config that are used for a run.
USED = set(inspect.signature(Runner).parameters) | {'custom_imports'}
# Settings that count epochs, besides the length of training.
IN_EPOCHS = ('decay_epochs', 'T_max', 'begin', 'end')


@dataclass
class Row:
    """One setting of a grid and the results of its runs.

    Attributes:
        group (str): The network, where a grid has several; else ''.
        name (str): The setting.
        paper (float | None): The paper's accuracy on ImageNet, in percent.
        accuracies (list[float]): Accuracy of each seed, in percent.
        seconds (list[float]): Time of each seed for training and testing.
    """

    group: str
    name: str
    paper: float | None = None
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Standard deviation (of a sample) over the seeds; None for one."""
        if len(self.accuracies) < 2:
            return None
        return statistics.stdev(self.accuracies)


@dataclass
class Ablation:
    """A grid and its results.

    Attributes:
        name (str): The name of the grid's file.
        title (str): What it compares.
        epochs (int): Epochs of each run.
        seeds (int): Number of runs of each row.
        rows (list[Row]): The settings. The others of a group are compared
            with its first.
        versions (dict[str, str]): Versions of mmvanilla and torch.
    """

    name: str
    title: str
    epochs: int
    seeds: int
    rows: list[Row]
    versions: dict[str, str] = field(default_factory=lambda: dict(
        mmvanilla=__version__, torch=torch.__version__))

    def to_json(self) -> str:
        """The results as JSON, with mean and deviation of each row."""
        content = asdict(self)
        for entry, row in zip(content['rows'], self.rows):
            entry.update(mean=row.mean, std=row.std)
        return json.dumps(content, indent=2) + '\n'


def run_ablation(grid: str | Path,
                 out: str | Path,
                 seeds: int = 3,
                 epochs: int | None = None,
                 workers: int | None = None) -> Ablation:
    """Train the runs that are not finished, each in a process of one thread.

    A finished run writes ``out/runs/GRID/ROW/seed-S.json``. It is kept as
    long as its config and the versions are the same. So a grid that was
    interrupted, or has another row or seed now, trains only what is missing.

    Args:
        grid (str): A config with a ``grid`` of ``title`` and ``rows``. A row
            has a ``name``, a ``change`` to merge into the config, and may
            have a ``group`` and the ``paper``'s figure.
        out (str): The folder for results; created if it does not exist.
        seeds (int): Runs of each row. Defaults to 3.
        epochs (int, optional): Epochs of each run. The decay of lambda and the
            learning rate's schedule are scaled with it. Defaults to None: as
            the config says.
        workers (int, optional): Runs at the same time. Defaults to None: one
            for each core that this process may use.

    Returns:
        Ablation: The results.

    Raises:
        UserError: If ``grid`` has no valid grid, a number is not positive,
            ``out`` cannot be written, or a run fails. Finished runs are kept.
    """
    grid, out = Path(grid), Path(out)
    cfg = read_config(str(grid))
    for name, number in dict(seeds=seeds, epochs=epochs,
                             workers=workers).items():
        if number is not None and number < 1:
            raise UserError(f'--{name} must be positive, but got {number}')
    content, epochs = _check_grid(cfg), epochs or cfg.train_cfg.max_epochs
    rows = [
        Row(row.get('group', ''), row['name'], row.get('paper'))
        for row in content['rows']
    ]
    folder = out / 'runs' / grid.stem
    _make(folder)

    results, waiting = {}, {}
    for number, row in enumerate(content['rows']):
        for seed in range(seeds):
            run = run_config(cfg, row['change'], epochs, seed)
            path = folder / _slug(rows[number]) / f'seed-{seed}.json'
            run.work_dir = str(path.with_suffix(''))
            digest = _digest(run)
            results[number, seed] = _finished(path, digest)
            if results[number, seed] is None:
                waiting[number, seed] = run, path, digest
    _train_all(waiting, results, rows, workers or _cores())

    for (number, _), result in sorted(results.items()):
        rows[number].accuracies.append(result['accuracy'])
        rows[number].seconds.append(result['seconds'])
    return Ablation(grid.stem, content['title'], epochs, seeds, rows)


def run_config(cfg: Config, change: dict, epochs: int, seed: int) -> Config:
    """The config of one run of a grid.

    Args:
        cfg (Config): The grid.
        change (dict): The ``change`` of a row.
        epochs (int): Epochs of the run; :data:`IN_EPOCHS` are scaled with it.
        seed (int): The seed.
    """
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


def _check_grid(cfg: Config) -> dict:
    grid = cfg.get('grid')
    if not isinstance(grid, dict) or not {'title', 'rows'} <= set(grid):
        raise UserError(f'{cfg.filename} is no grid: it must have a "grid" of '
                        'a title and rows')
    if 'max_epochs' not in cfg.get('train_cfg', {}):
        raise UserError(f'{cfg.filename} does not say how long to train: its '
                        'train_cfg must have max_epochs')
    for row in grid['rows']:
        if not {'name', 'change'} <= set(row):
            raise UserError(f'a row of {cfg.filename} lacks its name or its '
                            f'change: {dict(row)}')
    slugs = [_slug(Row(r.get('group', ''), r['name'])) for r in grid['rows']]
    if len(set(slugs)) < len(slugs) or not slugs:
        raise UserError(f'the rows of {cfg.filename} must be one or more, of '
                        'different names')
    return grid


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f'cannot make the folder {folder}: {e.strerror}'
                        ) from e
    check_output(folder / 'seed-0.json', force=True)


def _slug(row: Row) -> str:
    text = f'{row.group} {row.name}'.strip().lower()
    return ''.join(c if c.isalnum() else '-' for c in text)


def _digest(cfg: Config) -> str:
    content = {k: v for k, v in cfg.to_dict().items() if k != 'work_dir'}
    text = json.dumps(
        [content, __version__, torch.__version__],
        sort_keys=True,
        default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(path: Path, digest: str) -> dict | None:
    try:
        result = json.loads(path.read_text())
        return result if result['config'] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _train_all(waiting: dict, results: dict, rows: list[Row],
               workers: int) -> None:
    kept = len(results) - len(waiting)
    if kept:
        print(f'{kept} of {len(results)} runs are finished already')
    if not waiting:
        return
    bar = ProgressBar(len(waiting))
    # Not forked, since torch's threads do not work in a forked process.
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)),
        multiprocessing.get_context('spawn'),
        initializer=_start_worker)
    try:
        jobs = {
            pool.submit(_train_one, run.to_dict(), str(path), digest): key
            for key, (run, path, digest) in waiting.items()
        }
        for job in as_completed(jobs):
            number, seed = key = jobs[job]
            try:
                results[key] = job.result()
            except BrokenProcessPool as e:
                raise UserError('a process that trained was killed, perhaps '
                                'for want of memory: take fewer --workers'
                                ) from e
            except Exception as e:
                raise UserError(
                    f'the run "{_slug(rows[number])}" of seed {seed} failed, '
                    f'its log is in {waiting[key][0].work_dir}: '
                    f'{type(e).__name__}: {e}') from e
            bar.update()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        print()


def _start_worker() -> None:
    """Use one thread, print nothing, and exit when the parent process ends."""
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_one(content: dict, path: str, digest: str) -> dict:
    path = Path(path)
    cfg = Config(content)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    # mmengine distinguishes the runners of one process by this name.
    cfg.experiment_name = f'{path.parent.name}-{path.stem}-{time.time_ns()}'
    start = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    runner.train()
    result = dict(
        config=digest,
        accuracy=float(runner.message_hub.get_scalar(f'val/{METRIC}')
                       .current()),
        seconds=time.perf_counter() - start)
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(result) + '\n')
    return result
