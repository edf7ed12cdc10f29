#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint, or an exported file, of any OpenMMLab config."""
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
    add('config', help='config of the model')
    add('checkpoint', help='its checkpoint, or a file of tools/export.py, '
        'which runs in its own runtime')
    add('--deploy', action='store_true', help='merge the model, in memory, '
        'before it is tested')
    add('--compile', nargs='?', const='inductor',
        choices=['inductor', 'eager'], help='with --deploy, optimize the '
        'merged backbone for inference; eager needs no compiler; defaults to '
        'inductor')
    add('--out', help="file for the results, .pkl, .json or .yaml; as by "
        "mmpretrain's tool, an existing file is replaced")
    add('--out-item', choices=['pred', 'metrics'], help='what --out holds; '
        'defaults to pred')
    add('--show-dir', help='folder for images with the predictions drawn in')
    add('--show', action='store_true', help='show them in a window')
    add('--interval', type=int, default=1, help='draw every INTERVAL-th '
        'image; defaults to 1')
    add('--wait-time', type=float, default=2, help='seconds for which a '
        'window stays; defaults to 2')
    add('--tta', action='store_true', help='average over test-time '
        'augmentations')
    add('--worst', nargs=2, metavar=('N', 'DIR'), help='draw the N images of '
        'largest loss, of classifiers, to DIR/worst.png')
    add('--threads', type=int, help='how many threads an exported file uses')
    add_run_options(parser)
    add_config_options(parser)
    add_data_options(parser)
    return parser.parse_args()


def main(local_rank: int, **options) -> None:
    if options['launcher'] == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    from mmvanilla.engine.runs import test
    if options['threads'] in range(1, 1 + os.cpu_count()):  # of pt2 and aoti
        import torch
        torch.set_num_threads(options['threads'])
    test(**options)


if __name__ == '__main__':
    run(main, parse_args())
