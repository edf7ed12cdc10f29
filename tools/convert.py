#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a checkpoint between the authors' format and mmvanilla's."""
import argparse

from options import run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument(
        'dst', help='checkpoint to write; a config is written beside it')
    parser.add_argument(
        '--to',
        choices=['mmvanilla', 'authors'],
        default='mmvanilla',
        help='format to write')
    parser.add_argument(
        '--key',
        choices=['model_ema', 'model'],
        help="entry of the authors' file to read (default: model_ema where "
        'there is one) or to write (default: model)')
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace DST and the config beside it if they exist')
    return parser.parse_args()


def main(**options):
    from mmvanilla.checkpoints import convert
    print(convert(**options))


if __name__ == '__main__':
    run(main, parse_args())
