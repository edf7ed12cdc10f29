# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Options that several tools share."""
import argparse
import os

from mmengine.config import DictAction

from ..utils.errors import UserError


class CfgOptions(DictAction):
    """mmengine's ``KEY=VALUE`` action that refuses ``KEY VALUE``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Parse the pairs.

        Raises:
            UserError: If one has no "=".
        """
        for value in values:
            if '=' not in value:
                raise UserError(f'{option_string} takes KEY=VALUE, without '
                                f'spaces around "=", but got {value!r}')
        super().__call__(parser, namespace, values, option_string)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of training and testing, named as mmpretrain's."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and results; defaults to work_dirs/CONFIG')
    parser.add_argument(
        '--amp', action='store_true', help='run in mixed precision')
    parser.add_argument(
        '--no-pin-memory',
        dest='pin_memory',
        action='store_false',
        help='do not let data loaders pin memory')
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='launcher that started the processes; defaults to none')
    parser.add_argument(
        '--log',
        choices=['short', 'full'],
        default='short',
        help='full shows environment, config and hooks on the screen too; '
        'defaults to short')
    add_data_options(parser)
    # What torch's launcher passes to each process.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0,
        help=argparse.SUPPRESS)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that override a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override the config, as in train_cfg.max_epochs=10')
    parser.add_argument(
        '--allow-new-keys',
        action='store_true',
        help='let --cfg-options add unknown keys')


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`.own_images.use_image_folder`."""
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='use the images of a folder instead of those of the config: '
        'FOLDER holds train and val, each with one folder for each class, or '
        'one folder for each class without train and val')
    parser.add_argument(
        '--check-images',
        action='store_true',
        help='decode all images of --data first and leave out unreadable ones')


def parse_run_options(parser: argparse.ArgumentParser) -> dict:
    """Parse the command line into the arguments of ``train`` or ``test``."""
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args
