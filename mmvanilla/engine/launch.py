# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a config to a run: read it, start the processes, build the runner."""
import logging
import os
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints import safe_reading
from ..utils.cfg_options import parse_cfg_options
from ..utils.configs import (
    build_error,
    read_config,
    scope_name,
    unknown_type,
)
from ..utils.errors import UserError
from .console import ConsoleHook
from .weights import WeightsHook

# Where each launcher says how many processes it started.
WORLD_SIZE = dict(
    pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
# Beginnings of errors that a user can correct, and how.
KNOWN_ERRORS = {
    'Expected more than 1 value per channel when training, got input size':
    'a batch norm was given a batch of one image: set train_dataloader.'
    'drop_last=True, or a batch_size that leaves no single image at the end',
    'stack expects each tensor to be equal size':
    'images of different sizes cannot be a batch: let the last transforms of '
    'the pipeline resize or crop them to one',
    r'Given groups=.* expected input\[\d+, (\d+),.* to have (\d+) channels.*':
    r'a layer takes \2 channels, but gets \1: for images, change in_channels '
    'of the backbone, mean and std, or how they are loaded (color_type); for '
    'a head, its in_channels',
    ".*(Output size is too small|Kernel size can't be greater).*":
    'they are smaller than the total stride of the network, whose last '
    'feature map would be empty: resize them to more, or use fewer strides',
    r'Target (\d+) is out of bounds.*':
    r'the label \1 is not below num_classes of the head',
    'CUDA error: device-side assert triggered':
    'an index is too large, as a label that is not below num_classes',
    '(class .*: )?need at least one array to concatenate':
    'a data set has no sample, or none is left after its filter_cfg',
    'base_wd should not be None':
    'paramwise_cfg changes the weight decay, which optim_wrapper.optimizer '
    'lacks: give weight_decay, 0 for none',
    'self.(begin_epoch|begin_iter) should be smaller than or equal to .*':
    r'the average of EMAHook would begin after the run: lower its \1',
    'weight tensor should be defined either for all .*':
    'class_weight of a loss must have one number for each class',
    r'clip_grad_\w+\(\) (.*)': r'optim_wrapper.clip_grad: \1',
    'failed to load image': 'cannot read an image',
    r'(\S+) is not in the pretrained model':
    r'no key in the checkpoint of an init_cfg begins with its prefix \1',
    'OpenCV.*!buf.empty.*': 'cannot read an image, since its file is empty: '
    '"find FOLDER -size 0" lists such files',
}


def explain(error: Exception) -> str | None:
    """A sentence on an error that a user can correct; None for others."""
    # One from a worker of a data loader holds its traceback.
    text = re.split(r'\n[\w.]+: ', str(error).strip())[-1]
    for theirs, ours in KNOWN_ERRORS.items():
        if re.match(theirs, text):
            return re.sub(theirs, ours, text)
    return text if 'DataLoader worker' in str(error) and isinstance(
        error, OSError | UserError) else build_error(error)


def read_run_config(
        config: str, work_dir: str | None = None, launcher: str = 'none',
        cfg_options=None, allow_new_keys: bool = False) -> Config:
    """Read a config; set its scope, its launcher and its work dir.

    ``cfg_options`` are KEY=VALUE texts, or values by dotted keys.
    """
    if not isinstance(cfg_options, dict):
        cfg_options = parse_cfg_options(cfg_options)
    cfg = read_config(config, cfg_options, allow_new_keys)
    # mmengine would go on with that of an earlier run of this process.
    cfg.default_scope = scope_name(cfg)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', osp.splitext(osp.basename(config))[0])
    return cfg


def set_loader_defaults(cfg: Config, pin_memory: bool,
                        persistent_workers: bool = True) -> None:
    """Set what mmpretrain's tools set, for its configs only."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        if loader and scope_name(cfg) == 'mmpretrain':
            loader.update(dict(
                pin_memory=torch.cuda.is_available(), persistent_workers=True,
                collate_fn=dict(type='default_collate')) | loader)
        if not pin_memory:
            loader['pin_memory'] = False
        if not loader.get('num_workers') or not persistent_workers:
            loader['persistent_workers'] = False


def _start_on_cpus(cfg: Config) -> None:
    """Join the processes, as mmengine's init_dist does on GPUs only."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.sync_bn = None  # torch's does not run on CPUs
    cfg.setdefault('model_wrapper_cfg', dict(
        type='MMDistributedDataParallel', device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False)))


@contextmanager
def running(cfg: Config, log: str) -> Iterator[tuple[Runner, ConsoleHook]]:
    """Build a runner and run it: read safely, with one-line errors."""
    variable = WORLD_SIZE.get(cfg.launcher, 'PATH')
    if variable not in os.environ:
        raise UserError(f'--launcher {cfg.launcher} is for processes that its '
                        f'launcher starts, which sets {variable}')
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        _start_on_cpus(cfg)
    model = cfg.model.get('module', cfg.model)  # inside of a TTA model
    if isinstance(model.get('type'), str):  # a class in a new-style config
        # Without yapf, which takes minutes for the names of many classes.
        cfg = Config(cfg.to_dict(), cfg.text, cfg.filename, cfg.env_variables,
                     format_python_code=False)
    console = ConsoleHook()
    kind = cfg.get('runner_type', 'Runner')
    if RUNNERS.get(kind) is None:
        raise UserError(unknown_type(kind, RUNNERS))
    runner_class = console.quiet(
        RUNNERS.get(kind),
        logging.WARNING if log == 'short' else logging.NOTSET)
    try:
        with safe_reading():
            runner = runner_class.from_cfg(cfg)
            runner.register_hook(WeightsHook())
            runner.register_hook(console)
            yield runner, console
    except KeyboardInterrupt:
        raise UserError('interrupted; the same command with --resume goes on '
                        'from the last checkpoint, if there is one') from None
    except Exception as e:
        problem = explain(e)
        if problem:
            raise UserError(problem) from e
        raise
    finally:
        console.close()
