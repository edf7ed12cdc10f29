# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train the model of a config of any toolbox."""
import logging
import math
import shlex
import sys

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..checkpoints import load_checkpoint
from ..utils.config_options import check_parts, type_name
from ..utils.data import check_data
from ..utils.errors import UserError
from .console import ConsoleHook
from .hooks.head_size_hook import HeadSizeHook
from .launch import (
    build_runner,
    plain_errors,
    read_run_config,
    set_loader_defaults,
)
from .own_images import use_image_folder
from .resume import check_resumable, find_checkpoint


def train(config: str,
          work_dir: str | None = None,
          resume: str | None = None,
          amp: bool = False,
          validate: bool = True,
          auto_scale_lr: bool = False,
          pin_memory: bool = True,
          persistent_workers: bool = True,
          cfg_options: dict | None = None,
          allow_new_keys: bool = False,
          data: str | None = None,
          check_images: bool = False,
          log: str = 'short',
          launcher: str = 'none') -> Runner:
    """Train the model of a config.

    Args:
        config (str): The config file.
        work_dir (str, optional): Folder for logs and checkpoints. Defaults to
            None: what the config says, else ``work_dirs/CONFIG``.
        resume (str, optional): A checkpoint to resume from, or 'auto' for the
            newest readable one in the work dir. Defaults to None: training
            starts anew, or as the config says.
        amp (bool): Whether to train in mixed precision. Defaults to False.
        validate (bool): Whether to evaluate during training. Defaults to
            True.
        auto_scale_lr (bool): Whether to scale the learning rate to the actual
            batch size, by the config's ``auto_scale_lr``. Defaults to False.
        pin_memory (bool): False to switch it off in all data loaders.
            Defaults to True: see :func:`set_loader_defaults`.
        persistent_workers (bool): False to start workers anew in each epoch.
            Defaults to True: see :func:`set_loader_defaults`.
        cfg_options (dict, optional): Overrides of the config. Defaults to
            None.
        allow_new_keys (bool): Whether these may add unknown keys. Defaults to
            False.
        data (str, optional): A folder of images instead of the config's, see
            :func:`use_image_folder`. Defaults to None.
        check_images (bool): Whether to decode all of them first and to leave
            out those that are unreadable. Defaults to False.
        log (str): 'short', or 'full' for environment, config and hooks on
            the screen too. Defaults to 'short'.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to
            'none'.

    Returns:
        Runner: The runner, with the trained model.

    Raises:
        UserError: If config, data or checkpoint are missing or invalid, or if
            training was interrupted from the keyboard.
    """
    cfg = read_run_config(config, work_dir, launcher, cfg_options,
                          allow_new_keys)
    check_parts(cfg, 'training', 'model', 'train_dataloader', 'train_cfg',
                'optim_wrapper')
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if get_device() == 'cpu':
        _leave_out_amp(cfg)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        set_loader_defaults(cfg, name, pin_memory, persistent_workers)
    if data is not None:
        use_image_folder(cfg, data, check_images=check_images)
    check_data(cfg, 'train_dataloader', 'val_dataloader')

    passed_over = []
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if cfg.get('resume') and not cfg.get('load_from'):
        cfg.load_from, passed_over = find_checkpoint(cfg.work_dir)
    elif cfg.get('resume'):
        check_resumable(cfg.load_from)
    elif cfg.get('load_from'):
        load_checkpoint(cfg.load_from)  # refuses a bad file before building

    scale = cfg.get('auto_scale_lr') or {}
    auto_scale_lr = auto_scale_lr or bool(scale.get('enable'))
    if auto_scale_lr and not scale.get('base_batch_size'):
        raise UserError(f'{config} has no auto_scale_lr.base_batch_size, '
                        'which says what batch size its learning rate is for')
    console = ConsoleHook()
    try:
        with plain_errors():
            runner = build_runner(cfg, log)
            runner.register_hook(HeadSizeHook())
            runner.register_hook(console)
            for reason in passed_over:
                runner.logger.warning(f'Passed over a checkpoint: {reason}')
            if passed_over:
                runner.logger.warning(f'Resuming from {cfg.load_from}')
            if scale.get('base_batch_size'):
                _scale_lr(runner, scale, auto_scale_lr)
            runner.train()
    except KeyboardInterrupt:
        raise UserError('training was interrupted; go on with: '
                        f'{_resume_command()}') from None
    finally:
        console.close()
    return runner


def _leave_out_amp(cfg: Config) -> None:
    """Change mixed precision to float32, since mmengine has none on CPUs."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) == 'AmpOptimWrapper':
        print_log(
            'mmengine trains in mixed precision on accelerators only: on this '
            'CPU, training goes on in float32',
            level=logging.WARNING)
        wrapper.type = 'OptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)


def _scale_lr(runner: Runner, scale: dict, enable: bool) -> None:
    """Scale the learning rate by ``scale.rule``, or warn that it is not.

    Args:
        runner (Runner): The runner, before training.
        scale (dict): ``base_batch_size``, and optionally ``rule``: 'linear',
            the default, or 'sqrt'.
        enable (bool): Whether to scale. Where not, a batch of another size
            than ``base_batch_size`` is logged.
    """
    cfg = runner.cfg
    rule = scale.get('rule', 'linear')
    if rule not in ('linear', 'sqrt'):
        raise UserError("auto_scale_lr.rule must be 'linear' or 'sqrt', but "
                        f'got {rule!r}')
    base = scale['base_batch_size']
    if not cfg.train_dataloader.get('batch_size'):
        if enable:
            raise UserError(f'{cfg.filename} has no train_dataloader.'
                            'batch_size, which --auto-scale-lr needs')
        return
    batch = runner.world_size * cfg.train_dataloader.batch_size
    total = batch * (cfg.optim_wrapper.get('accumulative_counts') or 1)
    if enable:
        ratio = total / base
        ratio = math.sqrt(ratio) if rule == 'sqrt' else ratio
        # mmengine multiplies by batch / base_batch_size and knows no rule.
        scaled = dict(enable=True, base_batch_size=batch / ratio)
        if hasattr(runner, 'auto_scale_lr'):
            runner.auto_scale_lr = scaled
        else:  # FlexibleRunner
            runner._auto_scale_lr = scaled
        runner.logger.info(
            f'The learning rate is multiplied by {ratio:.4g}, for a batch of '
            f'{total} instead of {base} ({rule} rule).')
    elif total != base:
        runner.logger.warning(
            f'The batch is {total} in all, and the learning rate is for '
            f'{base}: --auto-scale-lr scales it ({rule} rule).')


def _resume_command() -> str:
    args = sys.argv.copy()
    if '--resume' in args:
        i = args.index('--resume')
        named = i + 1 < len(args) and not args[i + 1].startswith('-')
        del args[i:i + 1 + named]
    return shlex.join(['python', *args, '--resume'])
