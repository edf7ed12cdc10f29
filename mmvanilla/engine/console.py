# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The output of a training run on the screen: header, progress, summary."""
import logging
import shlex
import sys
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..layers import SeriesActivation
from ..layers.forms import find_activations, find_layers
from ..utils.errors import UserError
from ..utils.terminal import some
from .plot import plot_curves
from .unwrap import unwrap_model

# Log records that begin with these go to the log file only.
FILE_ONLY = ('\n' + '-' * 60 + '\nSystem environment:', 'Config:\n',
             'Hooks will be executed in the following order:',
             'paramwise_options -- ', '"FileClient" will be deprecated',
             '"HardDiskBackend" is the alias',
             'Distributed training is not used, all SyncBatchNorm')


def _is_for_screen(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(FILE_ONLY)


def with_short_log(runner_class: type) -> type:
    """A runner that logs environment, config and hooks to the file only.

    Args:
        runner_class (type): mmengine's ``Runner``, or one like it.

    Returns:
        type: A subclass of the same name.
    """

    def build_logger(self, *args, **kwargs):
        logger = runner_class.build_logger(self, *args, **kwargs)
        for handler in _screens(logger):
            handler.addFilter(_is_for_screen)
        return logger

    return type(runner_class.__name__, (runner_class, ),
                dict(build_logger=build_logger))


def _screens(logger: logging.Logger) -> list[logging.StreamHandler]:
    return [
        handler for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]


class ConsoleHook(Hook):
    """Show a header, progress and a summary of a training run.

    The header and the summary are log records. The progress bar is shown
    below the log lines, where standard output is a terminal. :meth:`close`
    must be called after training, also where it fails.
    """

    # Last, so that the summary comes after the log lines of other hooks.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.progress = None
        self.streams = []
        self.accuracy = None

    def before_train(self, runner: Runner) -> None:
        """Log the header and start the progress bar."""
        rows = _header(runner)
        width = max(map(len, rows))
        runner.logger.info('\n'.join(
            [''] + [f'  {key:{width}}  {rows[key]}' for key in rows]))
        self.by_epoch = hasattr(runner.train_loop, 'run_epoch')
        if is_main_process() and sys.stdout.isatty():
            self._start_bar(runner)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Move the progress bar."""
        if self.progress is not None:
            self._update(runner, runner.iter + 1)

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Keep the first metric, for the progress bar."""
        for name, value in list((metrics or {}).items())[:1]:
            self.accuracy = f'{name} {value:.4g}'

    def after_train(self, runner: Runner) -> None:
        """Draw the curves and log the summary."""
        self.close()
        if is_main_process():
            runner.logger.info('\n'.join(['Finished.', *_summary(runner)]))

    def close(self) -> None:
        """End the progress bar, if there is one."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        for handler, stream in self.streams:
            handler.setStream(stream)
        self.streams = []

    def _start_bar(self, runner: Runner) -> None:
        console = Console(file=sys.stdout)
        self.progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.percentage:>3.0f} %'),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False)
        self.task = self.progress.add_task('', total=runner.max_iters)
        for handler in _screens(runner.logger):
            self.streams.append((handler, handler.stream))
            handler.setStream(_AboveBar(console))
        self.progress.start()
        self._update(runner, runner.iter)

    def _update(self, runner: Runner, done: int) -> None:
        if self.by_epoch:
            parts = [f'epoch {min(runner.epoch + 1, runner.max_epochs)}/'
                     f'{runner.max_epochs}']
        else:
            parts = [f'iteration {done}/{runner.max_iters}']
        scalars = runner.message_hub.log_scalars
        if 'train/lambda' in scalars:
            parts.append(f'lambda {scalars["train/lambda"].current():.2f}')
        if self.accuracy:
            parts.append(self.accuracy)
        self.progress.update(
            self.task, completed=done, description='  '.join(parts))


class _AboveBar:
    """A stream that prints lines, unchanged, above a progress bar."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def write(self, text: str) -> None:
        if text.strip('\n'):
            self.console.print(
                Text.from_ansi(text.strip('\n')), soft_wrap=True)

    def flush(self) -> None:
        pass


def _form_of(model: torch.nn.Module) -> str | None:
    """'train', 'fine-tune' or 'deploy'; None without this package's layers."""
    if find_activations(model):
        return 'train'
    if find_layers(model):
        return 'fine-tune'
    has_series = any(
        isinstance(m, SeriesActivation) for m in model.modules())
    return 'deploy' if has_series else None


def _header(runner: Runner) -> dict[str, str]:
    model = unwrap_model(runner.model)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    backbone = getattr(model, 'backbone', None)
    name = type(model).__name__
    if backbone is not None:
        arch = runner.cfg.model.get('backbone', {}).get('arch')
        name += f' with {type(backbone).__name__}' + (
            f'-{arch}' if isinstance(arch, str | int) else '')
    form = _form_of(model)
    rows = {'model': f'{name}, {parameters:.2f} M parameters'}
    if form:
        rows['form'] = form

    dataset = runner.train_dataloader.dataset
    counts = [f'{len(dataset)} for training'] if hasattr(
        dataset, '__len__') else []
    if runner.val_loop is not None:
        counts.append(f'{len(runner.val_dataloader.dataset)} for validation')
    root = getattr(dataset, 'data_root', '')
    rows['data'] = ', '.join(counts) + (f', from {root}' if root else '')
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes:
        rows['classes'] = f'{len(classes)}: {some(list(classes), 6)}'
    if hasattr(runner.train_loop, 'run_epoch'):
        rows['epochs'] = f'{runner.max_epochs}'
    else:
        rows['iterations'] = f'{runner.max_iters}'
    device = str(next(model.parameters()).device)
    if runner.world_size > 1:
        device += f', {runner.world_size} processes'
    rows['device'] = device
    rows['work dir'] = runner.work_dir
    return rows


def _summary(runner: Runner) -> list[str]:
    info = runner.message_hub.runtime_info
    rows, best, last = {}, None, info.get('last_ckpt')
    for key, path in info.items():
        if key.startswith('best_ckpt') and path:
            score = info.get(key.replace('best_ckpt', 'best_score'))
            best = best or path
            rows[key.replace('best_ckpt', 'best')] = (
                path if score is None else f'{score:.4g} in {path}')
    if last:
        rows['last'] = last
    merged = info.get('deploy_ckpt')
    if merged:
        rows['merged'] = merged
    try:
        rows['curves'] = str(plot_curves(runner.work_dir))
    except (UserError, OSError) as e:
        runner.logger.warning(f'no curves were drawn: {e}')
    config = Path(runner.work_dir, Path(runner.cfg.filename or '').name)
    if merged:
        rows['next'] = shlex.join([
            'python', 'demo/image_demo.py', 'IMAGE',
            str(Path(merged).with_suffix('.py')), '--out', 'predictions'
        ])
    elif config.is_file() and (best or last):
        rows['next'] = shlex.join(
            ['python', 'tools/test.py', str(config), str(best or last)])
    width = max(map(len, rows), default=0)
    return [f'  {key:{width}}  {rows[key]}' for key in rows]
