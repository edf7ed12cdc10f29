# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a config to a runner, for training and testing."""
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..utils.building import read_config
from ..utils.config_options import scope_name
from ..utils.errors import UserError
from .console import with_short_log


def read_run_config(config: str, work_dir: str | None, launcher: str,
                    cfg_options: dict | None, allow_new_keys: bool) -> Config:
    """Read a config; set its default scope, its launcher and its work dir.

    Args:
        config (str): The config file.
        work_dir (str, optional): None for what the config says, else
            ``work_dirs/CONFIG``.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        cfg_options (dict, optional): Overrides of the config.
        allow_new_keys (bool): Whether these may add unknown keys.

    Raises:
        UserError: As :func:`mmvanilla.utils.building.read_config`.
    """
    cfg = read_config(config, cfg_options, allow_new_keys)
    # mmengine would go on with the scope of whatever ran before in this
    # process.
    cfg.default_scope = scope_name(cfg)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif not cfg.get('work_dir'):
        name = osp.splitext(osp.basename(config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    return cfg


def set_loader_defaults(cfg: Config,
                        name: str,
                        pin_memory: bool = True,
                        persistent_workers: bool | None = None) -> None:
    """Set the defaults of a data loader that mmpretrain's tools set.

    Only a config of mmpretrain gets them; the options to switch something off
    work with any. Persistent workers are off where there are no workers.

    Args:
        cfg (Config): The config, changed in place.
        name (str): Name of the data loader, for example 'train_dataloader'.
        pin_memory (bool): False to switch it off. Defaults to True: what the
            config says, else on where there is a GPU.
        persistent_workers (bool, optional): False to switch it off; True for
            what the config says, else on. Defaults to None: what the config
            says.

    Raises:
        UserError: If the loader prefetches without workers.
    """
    loader = cfg.get(name)
    if not isinstance(loader, dict):
        return
    if scope_name(cfg) == 'mmpretrain':
        loader.setdefault('pin_memory', torch.cuda.is_available())
        loader.setdefault('collate_fn', dict(type='default_collate'))
        if persistent_workers:
            loader.setdefault('persistent_workers', True)
    if not pin_memory:
        loader.pin_memory = False
    if not loader.get('num_workers'):
        if loader.get('prefetch_factor') is not None:
            raise UserError(
                f'{name}.prefetch_factor={loader.prefetch_factor} needs '
                f'workers: set {name}.num_workers, or leave it out')
        loader.persistent_workers = False
    elif persistent_workers is False:
        loader.persistent_workers = False


def build_runner(cfg: Config, log: str = 'short') -> Runner:
    """Build a config's runner, for one process or several.

    Args:
        cfg (Config): The config, from :func:`read_run_config`.
        log (str): 'short', or 'full' for environment, config and hooks on
            the screen too. Defaults to 'short'.

    Raises:
        UserError: If a part of the config cannot be built with its values.
    """
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # Initialized here, since mmengine would choose a GPU for each process.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        # torch's SyncBatchNorm does not run on CPUs.
        cfg.sync_bn = None
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters',
                                               False)))
    runner_class = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    if log == 'short':
        runner_class = with_short_log(runner_class)
    try:
        return runner_class.from_cfg(cfg)
    except ValueError as e:
        raise UserError(f'cannot build what {cfg.filename} says: {e}') from e


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise errors of a run that a user can mend as a one-line UserError."""
    try:
        yield
    except UserError as e:
        # The text of one from a data loader's worker holds its traceback.
        text = str(e)
        if 'Original Traceback' in text:
            text = text.strip().rpartition('UserError: ')[2]
        raise UserError(text) from e
    except ValueError as e:
        if 'more than 1 value per channel when training' not in str(e):
            raise
        raise UserError(
            'a batch norm was given a batch of one image: set '
            'train_dataloader.drop_last=True, or a train_dataloader.'
            'batch_size that does not leave one image for the last batch'
        ) from e
