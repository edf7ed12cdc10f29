#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a checkpoint between the authors' format and mmvanilla's."""
import argparse

from options import run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('src', help='checkpoint to read')
    add('dst', help='checkpoint to write; a config is written beside it')
    add('--to', choices=['mmvanilla', 'authors'], default='mmvanilla',
        help='format to write')
    add('--key', choices=['model_ema', 'model'], help="entry of the authors' "
        "file to read (default: model_ema where there is one) or to write "
        "(default: model)")
    add('--force', action='store_true', help='replace DST and the config '
        'beside it if they exist')
    return parser.parse_args()


def main(**options):
    from mmvanilla.checkpoints import convert
    print(convert(**options))


if __name__ == '__main__':
    run(main, parse_args())
