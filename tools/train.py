#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a model of any OpenMMLab config."""
import argparse

from mmvanilla.engine.options import add_run_options, parse_run_options
from mmvanilla.engine.train import train
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config to train')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a name, from the newest '
        'readable one in the work dir')
    parser.add_argument(
        '--no-validate',
        dest='validate',
        action='store_false',
        help='do not evaluate while training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch size of the config to '
        'the actual one')
    parser.add_argument(
        '--no-persistent-workers',
        dest='persistent_workers',
        action='store_false',
        help='start the workers of data loaders anew in each epoch')
    add_run_options(parser)
    return parse_run_options(parser)


@exit_on_user_error
def main() -> None:
    train(**parse_args())


if __name__ == '__main__':
    main()
