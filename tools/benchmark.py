#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Time forms of networks on this machine, in turns.

Prints a Markdown table. ``ratio`` is the time over that of the plain PyTorch
form (with --train, of the train form). ``share`` is the rate over that of a
matrix product on this machine, measured in the same run.
"""
import argparse

from mmvanilla.benchmark import benchmark
from mmvanilla.benchmark.report import FORMS, check_outputs
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models',
        nargs='+',
        help='6, VanillaNet-6, ResNet-50, Swin-T, any name in mmpretrain, or '
        'the config of a detector or segmentor: a path or mmdet::...')
    parser.add_argument(
        '--forms',
        nargs='+',
        default=['plain', 'eager'],
        metavar='FORM',
        help=f'forms to time: {", ".join(FORMS)}; append :fp32, :bf16 or '
        ':int8 for another precision than --dtype; defaults to plain eager')
    parser.add_argument(
        '--batches',
        nargs='+',
        type=int,
        default=[1],
        help='batch sizes; defaults to 1')
    parser.add_argument(
        '--threads', type=int, help="defaults to PyTorch's own default")
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'bf16'),
        default='fp32',
        help='precision of the forms; defaults to fp32')
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default='cpu',
        help='defaults to cpu')
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        default=[224],
        help='side of the images, or height and width, in pixels; defaults to '
        '224')
    parser.add_argument(
        '--repeats',
        type=int,
        default=20,
        help='timed calls of each form; defaults to 20')
    parser.add_argument(
        '--warmup',
        type=int,
        default=2,
        help='turns before the first timed one; defaults to 2')
    parser.add_argument(
        '--train',
        action='store_true',
        help='measure a training step (forward, backward, AdamW) and its '
        'memory, of the train form and the fine-tune form')
    parser.add_argument(
        '--together',
        action='store_true',
        help='time all networks in turns, to compare one with another')
    parser.add_argument(
        '--out',
        metavar='PREFIX',
        help='write PREFIX.md, PREFIX.json and PREFIX.png')
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace existing files that mmvanilla did not write')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = vars(parse_args())
    prefix, force = args.pop('out'), args.pop('force')
    if prefix:
        check_outputs(prefix, force)
    result = benchmark(**args)
    print(result.table())
    if prefix:
        print('wrote ' + ', '.join(result.save(prefix)))


if __name__ == '__main__':
    main()
