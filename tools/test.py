#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint of any OpenMMLab config."""
import argparse

from mmvanilla.engine.options import add_run_options, parse_run_options
from mmvanilla.engine.test import test
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='merge the model, in memory, before it is tested')
    parser.add_argument(
        '--compile',
        nargs='?',
        const='inductor',
        choices=['inductor', 'eager'],
        help='with --deploy, optimize the merged backbone for inference; '
        'eager needs no compiler; defaults to inductor')
    parser.add_argument(
        '--out',
        help="file for the results, .pkl, .json or .yaml; as by mmpretrain's "
        'tool, an existing file is replaced')
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        help='what --out holds; defaults to pred')
    parser.add_argument(
        '--show-dir', help='folder for images with the predictions drawn in')
    parser.add_argument(
        '--show', action='store_true', help='show them in a window')
    parser.add_argument(
        '--interval',
        type=int,
        default=1,
        help='draw every INTERVAL-th image; defaults to 1')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which a window stays; defaults to 2')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='average over test-time augmentations')
    add_run_options(parser)
    return parse_run_options(parser)


@exit_on_user_error
def main() -> None:
    test(**parse_args())


if __name__ == '__main__':
    main()
