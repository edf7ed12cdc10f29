# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Options that several tools share, and how a tool is run.

Parsing imports neither torch nor the toolboxes, so that --help is fast.
"""
import argparse
import sys
from collections.abc import Callable


def run(main: Callable, args: argparse.Namespace) -> None:
    """Call a tool's ``main`` with its options; users' errors are one line."""
    try:
        from mmvanilla.utils.errors import exit_on_user_error
    except ImportError as e:
        sys.exit(f'error: {e}')
    exit_on_user_error(main)(**vars(args))


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that override a config."""
    add = parser.add_argument
    add('--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE',
        help='override the config, as in train_cfg.max_epochs=10; [a, b] is a '
        'list, (a, b) a tuple, {a: b} a dict, and commas without brackets '
        'make a list of numbers only; all other text, and all in quotes, is '
        'taken as it is typed')
    add('--allow-new-keys', action='store_true', help='let --cfg-options set '
        'keys that a run is not known to read')


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a folder of images."""
    add = parser.add_argument
    add('--data', metavar='FOLDER', help='use the images of a folder instead '
        'of those of the config: FOLDER holds train and val, each with one '
        'folder for each class, or one folder for each class without train '
        'and val; for detection boxes as COCO, Roboflow or YOLO have them, '
        'for segmentation images and masks')
    add('--check-images', action='store_true', help='decode all images of '
        '--data first and leave out unreadable ones')


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of training and testing, named as mmpretrain's."""
    add = parser.add_argument
    add('--work-dir', help='folder for logs and results; defaults to '
        'work_dirs/CONFIG')
    add('--amp', action='store_true', help='run in mixed precision')
    add('--no-pin-memory', dest='pin_memory', action='store_false', help='do '
        'not let data loaders pin memory')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none', help='launcher that started the processes; defaults '
        'to none')
    add('--log', choices=['short', 'full'], default='short', help='full shows '
        'environment, config and hooks on the screen too; defaults to short')
    # What torch's launcher passes to each process.
    add('--local-rank', '--local_rank', type=int, default=0,
        help=argparse.SUPPRESS)
