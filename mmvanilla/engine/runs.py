# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train and test the model of a config, as tools/train.py and test.py do."""
import copy
import os
import os.path as osp
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..checkpoints import load_checkpoint, load_weights
from ..utils import configs
from ..utils.configs import check_parts, scope_name, type_name
from ..utils.errors import UserError
from ..utils.files import check_output, is_exported, write_beside
from ..utils.terminal import some
from .checks import check_run
from .classes import class_names
from .confusions import find_worst, watch
from .fonts import font_for
from .hooks.deep_training_hook import unwrap_model
from .launch import read_run_config, running, set_loader_defaults
from .own_data import use_data
from .schedules import check_schedules, scale_lr
from .weights import check_resumable, find_checkpoint


def train(config: str, work_dir: str | None = None,
          resume: str | None = None, amp: bool = False,
          validate: bool = True, auto_scale_lr: bool = False,
          persistent_workers: bool = True, pin_memory: bool = True,
          data: str | None = None, check_images: bool = False,
          balance: bool = False, log: str = 'short', **options) -> Runner:
    """Train the model of a config, with the options of tools/train.py."""
    cfg = read_run_config(config, work_dir, **options)
    check_parts(cfg, 'training', 'model', 'train_dataloader', 'train_cfg',
                'optim_wrapper')
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    notes, wrapper = [], cfg.optim_wrapper
    amp = amp or type_name(wrapper) == 'AmpOptimWrapper'
    if amp and get_device() == 'cpu':
        notes.append('mmengine trains in mixed precision on accelerators '
                     'only: on this CPU, training goes on in float32')
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
        wrapper.type = 'OptimWrapper'
    elif amp:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    set_loader_defaults(cfg, pin_memory, persistent_workers)
    if data is not None:
        notes += use_data(cfg, data, None, check_images, balance)
    elif balance:
        raise UserError('--balance is for the images of --data')
    configs.check_data(cfg, 'train_dataloader', 'val_dataloader')
    if resume is not None:
        cfg.resume, cfg.load_from = True, resume
    if cfg.get('resume') and cfg.get('load_from') in (None, 'auto'):
        cfg.load_from, unreadable = find_checkpoint(cfg.work_dir)
        notes += [f'Passed over a checkpoint: {x}' for x in unreadable]
    elif cfg.get('resume') and '://' not in cfg.load_from:
        check_resumable(cfg.load_from)
    notes += scale_lr(cfg, auto_scale_lr)
    notes += _save_by_iterations(cfg)
    with running(cfg, log) as (runner, _):
        for note in notes:
            runner.logger.warning(note)
        check_run(runner)
        check_schedules(runner)
        runner.train()
    return runner


def test(config: str, checkpoint: str, deploy: bool = False,
         compile: str | None = None, out: str | None = None,
         out_item: str | None = None, show_dir: str | None = None,
         show: bool = False, interval: int = 1, wait_time: float = 2,
         amp: bool = False, tta: bool = False, pin_memory: bool = True,
         data: str | None = None, check_images: bool = False,
         worst: tuple[str, str] | None = None, log: str = 'short',
         threads: int | None = None, **options) -> dict:
    """Evaluate a checkpoint or an exported file, as tools/test.py does."""
    exported, given = is_exported(checkpoint), dict(
        deploy=deploy, compile=compile, amp=amp, tta=tta,
        launcher=options.get('launcher', 'none') != 'none')
    for name in filter(given.get, given if exported else ()):
        raise UserError(f'--{name} is for a checkpoint, and {checkpoint} is '
                        'an exported file')
    cores = os.cpu_count() or 1
    if threads is not None and not (exported and 0 < threads <= cores):
        raise UserError(f'--threads is a number from 1 to {cores}, of the '
                        'cores of this machine, and for exported files')
    fixed = [x for x in map(str, options.get('cfg_options') or ())
             if x.startswith('model.') and 'data_preprocessor' not in x]
    if exported and fixed:
        raise UserError(f'--cfg-options {fixed[0]} changes nothing of '
                        f'{checkpoint}: export it again with that option')
    if compile and (tta or not deploy):
        raise UserError('--compile needs --deploy and does not go with --tta: '
                        'it compiles a merged network for one image size')
    if out_item and not out:
        raise UserError('--out-item needs --out, the file that it goes to')
    if out and not out.endswith(('.pkl', ) if out_item != 'metrics' else (
            '.pkl', '.json', '.yaml', '.yml')):
        raise UserError('--out must end in .pkl, or in .json or .yaml with '
                        f'--out-item metrics, but got {out}')
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        check_output(out, (checkpoint, config), force=True)
    cfg = read_run_config(config, **options)
    check_parts(cfg, 'testing', 'model', 'test_dataloader', 'test_cfg',
                'test_evaluator')
    notes = [] if data is None else use_data(
        cfg, data, checkpoint, check_images)
    configs.check_data(cfg, 'test_dataloader')
    set_loader_defaults(cfg, pin_memory)
    worst = worst and find_worst(cfg, *worst)
    cfg.load_from, cfg.resume = None, False
    if osp.realpath(cfg.work_dir) == osp.dirname(osp.realpath(config)):
        # Where mmengine would write the changed config over this one.
        cfg.work_dir = osp.join(cfg.work_dir, 'test')
    if show or show_dir:
        _draw(cfg, show_dir, show=show, interval=interval, wait_time=wait_time)
    if exported:
        notes += _use_file(cfg, checkpoint, threads)
    if tta:
        _add_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    with running(cfg, log) as (runner, console), (
            write_beside(out) if out and is_main_process() else nullcontext(
                ['unused.pkl'])) as (written, ):
        console.close()  # there is no header
        for note in notes:
            runner.logger.warning(note)
        model = unwrap_model(runner.model)
        if exported:
            runner.logger.info(f'Testing {checkpoint}: {model.run.title}')
            old = model.run.metadata['labels']
        else:
            # Before EMAHook copies the model: `state_dict` holds the average.
            load_weights(model, checkpoint)
            meta = load_checkpoint(checkpoint).get('meta') or {}
            old = list((meta.get('dataset_meta') or {}).get('classes') or ())
        new = class_names(runner.test_dataloader.dataset)
        if old and new and old != new and (
                exported or scope_name(cfg) == 'mmpretrain'):
            raise UserError(f'{checkpoint} was trained for {some(old, 12)}, '
                            f'but the test data have {some(new, 12)}'
                            + ': give the folder that it was trained on by '
                            '--data' * (data is None))
        if out and out_item != 'metrics':
            runner.test_evaluator.metrics.append(DumpResults(str(written)))
        if deploy:
            from ..reparam.merge import switch_loaded
            layers = switch_loaded(model, checkpoint)
            runner.logger.info(f'Merged {layers} layers before testing')
        if compile:
            from ..export.optimize import optimize_for_inference
            if not hasattr(model, 'backbone'):
                raise UserError('--compile is for a model with a backbone, '
                                f'and {type(model).__name__} has none')
            batch = next(iter(runner.test_loop.dataloader))
            images = model.data_preprocessor(batch, False)['inputs']
            model.backbone = optimize_for_inference(
                model.backbone, images, compile)
        if show_dir and scope_name(cfg) == 'mmpretrain':
            runner.register_hook(_FoldersInNames())
        confusions = watch(cfg, runner.test_loop)
        with font_for(class_names(runner.test_loop.dataloader.dataset)) if (
                show or show_dir) else nullcontext():
            metrics = runner.test()
        if out_item == 'metrics' and is_main_process():
            mmengine.dump(metrics, str(written))
        if confusions is not None:
            confusions.report(runner, worst)
    if out:
        runner.logger.info(f'The results are in {out}')
    return metrics


def _save_by_iterations(cfg: Config) -> list[str]:
    """Where the loop counts iterations, make the default hooks do so too."""
    loop, hooks = cfg.train_cfg, cfg.setdefault('default_hooks', {})
    if loop.get('by_epoch', True) and type_name(loop) != 'IterBasedTrainLoop':
        return []
    cfg.log_processor = dict(cfg.get('log_processor') or {}, by_epoch=False)
    if hooks.setdefault('logger', dict(type='LoggerHook')):
        hooks.logger.log_metric_by_epoch = False
    saving = hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    if not saving or not saving.get('by_epoch', True):
        return []
    saving.by_epoch = False
    if saving.setdefault('interval', 1) > 0:
        saving.interval = max(
            saving.interval, loop.get('val_interval', 1000))
    return ['The loop counts iterations, and so does default_hooks.'
            f'checkpoint now, with interval={saving.interval}.']


class _FoldersInNames(Hook):
    """Name drawings after the folders of images too, not to mix them up."""

    priority = 'HIGH'  # before VisualizationHook

    def after_test_iter(self, runner, batch_idx: int, data_batch=None,
                        outputs=()) -> None:
        root = getattr(runner.test_dataloader.dataset, 'data_root', '')
        for sample in outputs:
            if 'img_path' in sample:
                name = osp.relpath(sample.img_path, root or '.')
                sample.set_metainfo(dict(img_path=name.replace(os.sep, '_')))


def _use_file(cfg: Config, path: str, threads: int | None) -> list[str]:
    """Make an exported file the model, with the config's preprocessor."""
    from ..export.exported import read_metadata, scope_of_file
    from ..export.metadata import steps
    meta, scope = read_metadata(path), scope_name(cfg)
    if scope_of_file(path, meta) != scope:
        raise UserError(f'{path} is for {meta["task"]}, but {cfg.filename} is '
                        f'a config of {scope}')
    if meta['input_shape'][0] != -1:
        cfg.test_dataloader.batch_size = 1
    node = cfg.model
    while 'data_preprocessor' not in node and 'model' in node:
        node = node.model  # inside of WithDeepTraining
    found = node.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if scope == 'mmpretrain':  # the default of its classifiers
        found.setdefault('type', 'ClsDataPreprocessor')
    cfg.model = ConfigDict(
        type='mmvanilla.export.exported.ExportedModel', file=path,
        threads=threads, data_preprocessor=found)
    cfg.custom_hooks = []  # which train, or need a model's layers
    with configs.scope_of(cfg):
        ours = steps(cfg, len(meta['mean']))
    return [f'{path} was exported with another test pipeline than that of '
            f'{cfg.filename}, which is used: it has {x} instead of {y}'
            for x, y in zip_longest(meta['preprocess'] or (), ours or ())
            if ours and meta['preprocess'] and x != y][:1]


def _draw(cfg: Config, folder: str | None, **options) -> None:
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook or not cfg.get('visualizer'):
        raise UserError(f'{cfg.filename} lacks a default_hooks.visualization '
                        'or a visualizer, which draw the predictions')
    scope = scope_name(cfg)
    options['enable' if scope == 'mmpretrain' else 'draw'] = True
    hook.update(options)
    if folder and scope == 'mmseg':
        cfg.visualizer.save_dir = folder
    elif folder:  # a relative one would be in the work dir for mmdet
        key = 'test_out_dir' if scope == 'mmdet' else 'out_dir'
        hook[key] = osp.abspath(folder)


def _add_tta(cfg: Config) -> None:
    dataset = configs.unwrap_dataset(cfg.test_dataloader.get('dataset') or {})
    if not dataset.get('pipeline'):
        raise UserError(f'{cfg.filename} has no pipeline in its '
                        'test_dataloader, which --tta needs')
    scope = scope_name(cfg)
    if scope == 'mmseg':
        check_parts(cfg, '--tta', 'tta_model', 'tta_pipeline')
    # The defaults of the toolboxes' own tools.
    nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    cfg.setdefault('tta_model', dict(type='DetTTAModel', tta_cfg=nms)
                   if scope == 'mmdet' else dict(
                       type='mmpretrain.AverageClsScoreTTA'))
    if 'tta_pipeline' not in cfg:
        *load, last = copy.deepcopy(dataset.pipeline)
        if scope == 'mmdet':
            last = dict(type='PackDetInputs', meta_keys=(
                'img_id', 'img_path', 'ori_shape', 'img_shape',
                'scale_factor', 'flip', 'flip_direction'))
        flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
        cfg.tta_pipeline = [
            *load, dict(type='TestTimeAug', transforms=[flips, [last]])]
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline
