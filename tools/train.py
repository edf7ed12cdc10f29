#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a model of any OpenMMLab config."""
import argparse
import os

from options import (
    add_config_options,
    add_data_options,
    add_run_options,
    run,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config to train')
    add('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='resume from a checkpoint; without a name, from the newest '
        'readable one in the work dir')
    add('--no-validate', dest='validate', action='store_false', help='do not '
        'evaluate while training')
    add('--auto-scale-lr', action='store_true', help='scale the learning rate '
        'from the batch size of the config to the actual one')
    add('--balance', action='store_true', help='repeat training images of '
        '--data in classes that have few')
    add('--no-persistent-workers', dest='persistent_workers',
        action='store_false', help='start the workers of data loaders anew in '
        'each epoch')
    add_run_options(parser)
    add_config_options(parser)
    add_data_options(parser)
    return parser.parse_args()


def main(local_rank: int, **options) -> None:
    if options['launcher'] == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    from mmvanilla.engine.runs import train
    train(**options)


if __name__ == '__main__':
    run(main, parse_args())
