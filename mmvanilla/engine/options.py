# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Options that tools/train.py and tools/test.py share."""
import argparse
import os

from mmengine.config import DictAction

from ..utils.errors import UserError


class CfgOptions(DictAction):
    """mmengine's ``KEY=VALUE`` action, with a sentence for ``KEY VALUE``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Read the pairs."""
        for value in values:
            if '=' not in value:
                raise UserError(f'{option_string} takes KEY=VALUE, without '
                                f'spaces around "=", but got {value!r}')
        super().__call__(parser, namespace, values, option_string)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, named and meant as mmpretrain's."""
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override the config, as in train_cfg.max_epochs=10')
    parser.add_argument(
        '--allow-new-keys',
        action='store_true',
        help='let --cfg-options add keys that are not known')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes, where there are several')
    # What torch's launcher passes to each process.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0,
        help=argparse.SUPPRESS)


def parse_run_options(parser: argparse.ArgumentParser) -> dict:
    """Parse the command line into arguments of a run's function."""
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args
