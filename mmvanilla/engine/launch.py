# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Training and testing as the tools do it, for a config of any toolbox."""
import copy
import logging
import os.path as osp

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints import check_fit, load_checkpoint
from ..layers.forms import switch_to_deploy
from ..utils.building import check_data, read_config
from ..utils.errors import UserError


def train(config: str,
          work_dir: str | None = None,
          resume: str | None = None,
          amp: bool = False,
          validate: bool = True,
          auto_scale_lr: bool = False,
          cfg_options: dict | None = None,
          launcher: str = 'none') -> Runner:
    """Train.

    Args:
        config (str): The config's file.
        work_dir (str, optional): Where logs and checkpoints go. Defaults to
            None: what the config says, else ``work_dirs/CONFIG``.
        resume (str, optional): A checkpoint to go on from, or 'auto' for the
            latest in the work dir. Defaults to None.
        amp (bool): Whether to train in mixed precision. Defaults to False.
        validate (bool): Whether to evaluate meanwhile. Defaults to True.
        auto_scale_lr (bool): Whether to scale the learning rate to the actual
            batch size. Defaults to False.
        cfg_options (dict, optional): Overrides of the config.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        Runner: What trained, with the trained model.

    Raises:
        UserError: If config, data or checkpoint are not there or not what
            they should be.
    """
    cfg = _read(config, work_dir, cfg_options, launcher)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if get_device() == 'cpu':
        _leave_out_amp(cfg)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise UserError(f'{config} has no auto_scale_lr, which says what '
                            'batch size its learning rate is for')
        cfg.auto_scale_lr.enable = True
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if cfg.get('load_from'):
        load_checkpoint(cfg.load_from)
    runner = _build_runner(cfg)
    runner.train()
    return runner


def test(config: str,
         checkpoint: str,
         deploy: bool = False,
         work_dir: str | None = None,
         out: str | None = None,
         out_item: str = 'pred',
         show_dir: str | None = None,
         show: bool = False,
         interval: int = 1,
         wait_time: float = 2,
         amp: bool = False,
         tta: bool = False,
         cfg_options: dict | None = None,
         launcher: str = 'none') -> dict:
    """Evaluate a checkpoint.

    Args:
        config (str): The config's file.
        checkpoint (str): The checkpoint's file or address.
        deploy (bool): Whether to merge the model before it is tested.
            Defaults to False.
        work_dir (str, optional): Where the metrics go. Defaults to None: what
            the config says, else ``work_dirs/CONFIG``.
        out (str, optional): A file for the results.
        out_item (str): What it holds, 'pred' or 'metrics'.
        show_dir (str, optional): A folder for images with predictions.
        show (bool): Whether to show those in a window. Defaults to False.
        interval (int): Draw every so many images. Defaults to 1.
        wait_time (float): Seconds that a window stays. Defaults to 2.
        amp (bool): Whether to test in mixed precision. Defaults to False.
        tta (bool): Whether to average over augmentations: those of the
            config's ``tta_pipeline``, else a horizontal flip.
        cfg_options (dict, optional): Overrides of the config.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        dict: The metrics, by name.

    Raises:
        UserError: If config, data or checkpoint are not there or not what
            they should be, or, with ``deploy``, if lambda is below 1.
    """
    cfg = _read(config, work_dir, cfg_options, launcher)
    if not cfg.get('test_dataloader'):
        raise UserError(f'{config} has no test_dataloader')
    if out and osp.splitext(out)[1] not in ('.pkl', '.json', '.yaml', '.yml'):
        raise UserError(f'--out must end in .pkl, .json or .yaml, got {out}')
    if out and out_item == 'pred' and not out.endswith('.pkl'):
        raise UserError('predictions hold tensors, so --out must end in .pkl '
                        f'or --out-item be metrics, got {out}')
    check_data(cfg, 'test_dataloader')
    content = load_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    if show or show_dir:
        _visualize(cfg, show, show_dir, interval, wait_time)
    if tta:
        _add_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    if deploy:
        # It would swap its copy, in train form, for the merged weights. The
        # average itself is what the checkpoint holds.
        cfg.custom_hooks = [
            hook for hook in cfg.get('custom_hooks') or []
            if hook['type'].split('.')[-1] != 'EMAHook'
        ]

    runner = _build_runner(cfg)
    model = runner.model
    while hasattr(model, 'module'):  # of several processes, or of TTA
        model = model.module
    check_fit(model, content.get('state_dict', content), checkpoint)
    if out and out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
    if deploy:
        runner.load_or_resume()
        try:
            bricks = switch_to_deploy(runner.model)
        except RuntimeError as e:
            raise UserError(f'{checkpoint}: {e}') from e
        runner.logger.info(f'Merged {bricks} bricks before testing')
    metrics = runner.test()
    if out and out_item == 'metrics':
        mmengine.dump(metrics, out)
    return metrics


def _read(config: str, work_dir: str | None, cfg_options: dict | None,
          launcher: str) -> Config:
    cfg = read_config(config, cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif not cfg.get('work_dir'):
        name = osp.splitext(osp.basename(config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    return cfg


def _build_runner(cfg: Config) -> Runner:
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # mmengine would choose a GPU for each process.
        torch.distributed.init_process_group('gloo')
        # Its SyncBN takes tensors of accelerators alone.
        cfg.sync_bn = None
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters',
                                               False)))
    try:
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return Runner.from_cfg(cfg)
    except ValueError as e:
        raise UserError(f'cannot build what {cfg.filename} says: {e}') from e


def _leave_out_amp(cfg: Config) -> None:
    """Let a recipe with mixed precision run where mmengine has none."""
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        print_log(
            'mmengine trains in mixed precision on accelerators only: on this '
            'CPU, training goes on in float32',
            level=logging.WARNING)
        wrapper.type = 'OptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)


def _visualize(cfg: Config, show: bool, show_dir: str | None,
               interval: int, wait_time: float) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(f'{cfg.filename} has no default_hooks.visualization, '
                        'which draws the predictions')
    hook.update(show=show, interval=interval, wait_time=wait_time)
    # The toolboxes agree on the rest, but not on these names.
    scope = cfg.get('default_scope') or 'mmpretrain'
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if show_dir and scope == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = show_dir


def _add_tta(cfg: Config) -> None:
    if 'tta_model' not in cfg:
        if cfg.get('default_scope', 'mmpretrain') != 'mmpretrain':
            raise UserError(f'{cfg.filename} has no tta_model, which says '
                            'what to average')
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    if 'tta_pipeline' not in cfg:
        *load, pack = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
        cfg.tta_pipeline = load + [
            dict(type='TestTimeAug', transforms=[flips, [pack]])
        ]
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
