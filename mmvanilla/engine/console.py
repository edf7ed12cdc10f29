# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What a training run shows: a header, progress, a summary and curves."""
import json
import logging
import re
import shlex
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import mmcv
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import VISUALIZERS

from ..layers import SeriesActivation, find_activations, find_layers
from ..utils.errors import UserError
from ..utils.files import write_beside
from ..utils.terminal import some
from .confusions import contact_sheet, watch
from .fonts import font_for
from .hooks.deep_training_hook import unwrap_model

# Scalars that are no metrics.
OTHERS = re.compile('(loss|decode[.]|aux[.]).*|(base_)?lr|lambda|grad_norm|'
                    'step|iter|epoch|(data_)?time|memory|coco/.*_precision|'
                    'IoU/.*')
PICTURE = 16  # images


class ConsoleHook(Hook):
    """Show a header, progress and a summary; close it after the run."""

    priority = 'LOWEST'  # the summary comes after other hooks' log lines

    def __init__(self) -> None:
        self.screens, self.bar, self.metric = {}, None, ''
        self.confusions = None
        # Of the best validation, else of the last: metrics and samples.
        self.best, self.samples, self.kept = None, [], ({}, [])

    def quiet(self, runner_class: type, lowest: int) -> type:
        """A subclass whose screen shows only warnings before the header."""

        def build_logger(*args, **kwargs) -> logging.Logger:
            logger = runner_class.build_logger(*args, **kwargs)
            self.screens = {x: x.level for x in logger.handlers
                            if type(x) is logging.StreamHandler}
            for screen, level in self.screens.items():
                screen.setLevel(max(level, lowest))
            return logger

        return type(runner_class.__name__, (runner_class, ),
                    dict(build_logger=build_logger))

    def close(self) -> None:
        """Show all log lines from here on and end the progress bar."""
        for screen, level in self.screens.items():
            screen.setLevel(level)
        if self.bar is not None:
            self.bar = self.bar.stop()
            self._print_to_stdout()

    def before_train(self, runner) -> None:
        """Log the header and start the progress bar, on a terminal."""
        from rich import console, progress
        self.close()
        self.confusions = watch(runner.cfg, runner.val_loop)
        runner.logger.info(_align(_header(runner)))
        if is_main_process() and sys.stdout.isatty():
            self.bar = progress.Progress(  # no thread, which loaders fork
                console=console.Console(soft_wrap=True), transient=True,
                auto_refresh=False, redirect_stderr=False)
            self.task = self.bar.add_task('', total=runner.max_iters)
            self.bar.start()
            self._print_to_stdout()

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Move the progress bar."""
        if self.bar is not None:
            name, done, total = _length(runner)
            lam = runner.message_hub.log_scalars.get('train/lambda')
            lam = f'  lambda {lam.current():.2f}' if lam else ''
            self.bar.update(
                self.task, completed=runner.iter + 1, refresh=True,
                description=f'{name} {done + 1}/{total}{lam}{self.metric}')

    def after_val_iter(self, runner, batch_idx: int, data_batch=None,
                       outputs=()) -> None:
        """Keep a few images of a detector or segmentor, for a picture."""
        total = len(runner.val_dataloader.dataset)
        self.samples = self.samples * (batch_idx > 0)
        for i, sample in enumerate(outputs, batch_idx * len(outputs)):
            if i * PICTURE % total < PICTURE and {*sample.keys()} & {
                    'pred_instances', 'pred_sem_seg'}:
                kept = sample.new()
                kept.pop('seg_logits', None)  # which are large
                self.samples.append(kept.cpu())

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keep what the summary shows, and a metric for the progress bar."""
        info = runner.message_hub.runtime_info
        best = [info[x] for x in info if x.startswith('best_ckpt')]
        if not best or best != self.best:
            self.best, self.kept = best, (metrics or {}, self.samples)
        self.metric = next((
            f'  {name} {value:.4g}' for name, value in (metrics or {}).items()
            if isinstance(value, int | float) and not OTHERS.fullmatch(name)
        ), self.metric)

    def after_train(self, runner) -> None:
        """Draw the curves and log the summary."""
        self.close()
        if is_main_process():
            found = self.confusions.pairs(3) if self.confusions else ()
            runner.logger.info('Finished.' + _align(_summary(
                runner, *self.kept, confused='; '.join(found))))

    def _print_to_stdout(self) -> None:  # rich's prints above its bar
        for screen in self.screens:
            screen.setStream(sys.stdout)


def _align(rows: dict[str, str]) -> str:
    width = max((len(key) for key in rows if rows[key]), default=0)
    return ''.join(f'\n  {key:{width}}  {rows[key]}'
                   for key in rows if rows[key])


def _length(runner) -> tuple[str, int, int]:
    if hasattr(runner.train_loop, 'run_epoch'):
        return 'epoch', runner.epoch, runner.max_epochs
    return 'iteration', runner.iter, runner.max_iters


def _header(runner) -> dict[str, str]:
    model = unwrap_model(runner.model)
    names = ' with '.join(type(x).__name__ for x in (
        model, getattr(model, 'backbone', None)) if x is not None)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    form = 'train' if find_activations(model) else (
        'fine-tune' if find_layers(model) else 'deploy' if any(
            isinstance(m, SeriesActivation) for m in model.modules()) else '')
    data = runner.train_dataloader.dataset
    counts = [f'{len(data)} for training'] * hasattr(data, '__len__')
    if runner.val_loop is not None:
        counts.append(f'{len(runner.val_dataloader.dataset)} for validation')
    if getattr(data, 'data_root', ''):
        counts.append(f'from {data.data_root}')
    classes = (getattr(data, 'metainfo', None) or {}).get('classes') or ()
    name, done, total = _length(runner)
    many = f', {runner.world_size} processes' * (runner.world_size > 1)
    return {
        'model': f'{names}, {size:.2f} M parameters', 'form': form,
        'data': ', '.join(counts),
        'classes': classes and f'{len(classes)}: {some(list(classes), 6)}',
        f'{name}s': f'{total}' + f', resumed after {done}' * (done > 0),
        'weights': runner.cfg.get('load_from'),
        'device': f'{next(model.parameters()).device}{many}',
        'work dir': runner.work_dir}


def _summary(runner, metrics: dict, samples: list, **more: str
             ) -> dict[str, str]:
    info = runner.message_hub.runtime_info
    last, merged = info.get('last_ckpt'), info.get('deploy_ckpt')
    best = {key[9:]: path for key, path in info.items()
            if key.startswith('best_ckpt') and path}
    rows = {f'best{key}': '{:.4g} in {}'.format(
        info.get(f'best_score{key}', float('nan')), best[key])
        for key in best} | _by_class(metrics) | dict(
            last=last, merged=merged, **more)
    for name, draw in dict(
            curves=lambda: plot_curves(runner.work_dir),
            predictions=lambda: _draw(runner, samples)).items():
        try:
            rows[name] = draw()
        except Exception as e:  # the training itself went well
            runner.logger.warning(f'no {name} were drawn: {e}')
    model = [Path(merged).with_suffix('.py')] if merged else [
        Path(runner.work_dir, Path(runner.cfg.filename or '').name),
        next(iter(best.values()), last)]
    if all(model) and model[0].is_file():
        rows['next'] = shlex.join(map(str, [
            'mmvanilla-predict', 'IMAGE', *model, '--out', 'predictions']))
    return rows


def _by_class(metrics: dict) -> dict[str, str]:
    """What CocoMetric and IoUMetric say of a detector or a segmentor."""
    rows = {f'AP of {name}': '{:.3f}, AP50 {:.3f}'.format(*(
        metrics[f'coco/{key}_mAP{end}'] for end in ('', '_50')))
        for key, name in (('bbox', 'boxes'), ('segm', 'masks'))
        if f'coco/{key}_mAP' in metrics}
    rows['AP by class'] = some([
        f'{key[5:-10]} {value:.3f}' for key, value in metrics.items()
        if key.endswith('_precision')], 20)
    if 'mIoU' in metrics:
        rows['mIoU'] = f'{metrics["mIoU"]:.2f} %'
        rows['IoU by class'] = some([
            f'{key[4:]} {value:.2f}' for key, value in metrics.items()
            if key.startswith('IoU/')], 20)
    return rows


def _draw(runner, samples: list) -> Path | None:
    """Draw what is annotated beside what is predicted, in one picture."""
    if not samples:
        return None
    kind = 'mmdet.Det' if 'pred_instances' in samples[0] else 'mmseg.Seg'
    visualizer = VISUALIZERS.get(f'{kind}LocalVisualizer')()
    meta = visualizer.dataset_meta = runner.val_dataloader.dataset.metainfo
    images, captions = [], []
    for sample in samples:
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        for name in ('annotated', 'predicted'):
            with font_for(meta['classes']):
                visualizer.add_datasample(
                    name, image, sample, draw_gt=name == 'annotated',
                    draw_pred=name == 'predicted')
            images.append(visualizer.get_image())
            captions.append(f'{name}: {Path(sample.img_path).name}')
    contact_sheet(images, captions, Path(runner.work_dir, 'predictions.png'))
    return Path(runner.work_dir, 'predictions.png')


def plot_curves(work_dir: str | Path) -> Path:
    """Draw loss, metrics, learning rate and lambda to WORK_DIR/curves.png."""
    from matplotlib.figure import Figure
    curves, unit = read_curves(Path(work_dir))
    metrics = [name for name in curves if not OTHERS.fullmatch(name)]
    panels = {title: names for title, *names in (
        ('loss', 'loss'), ('metrics', *metrics), ('learning rate', 'lr'),
        ('lambda', 'lambda')) if names and names[0] in curves}
    figure = Figure(figsize=(4 * len(panels), 3), layout='constrained')
    for i, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), i)
        for name in names:
            axes.plot(*zip(*sorted(curves[name].items())), '.-', label=name)
        axes.set(title=title, xlabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    with write_beside(Path(work_dir, 'curves.png')) as (path, ):
        figure.savefig(path, dpi=120)
    return Path(work_dir, 'curves.png')


def read_curves(work_dir: Path) -> tuple[dict[str, dict[float, float]], str]:
    """The scalars of a run, averaged over each epoch, or by iteration."""
    curves, unit = defaultdict(dict), 'epoch'
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = []
        for line in path.read_text(errors='replace').splitlines():
            with suppress(ValueError):  # a killed run may leave half a line
                lines.append(dict(json.loads(line)))
        if not any('lr' in line for line in lines):
            continue  # of a test
        unit = 'epoch' if any('epoch' in line for line in lines) else 'iter'
        values = defaultdict(list)  # a resumed run replaces earlier ones
        for line in lines:
            # Metrics have their epoch, or iteration, as `step` only.
            at = line.get(unit, line.get('step'))
            for name, value in line.items():
                if isinstance(value, int | float) and value != -1:  # no object
                    values[name, at].append(value)
        for (name, at), seen in values.items():
            curves[name][at] = sum(seen) / len(seen)
    if not curves:
        raise UserError(f'{work_dir} holds no scalars of a training run '
                        '(*/vis_data/scalars.json)')
    return curves, dict(iter='iteration').get(unit, unit)
