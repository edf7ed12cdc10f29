#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Export a checkpoint to a file that ships, and check it in its own runtime.

A checkpoint in train form is merged first. Labels, mean, std, order of
channels and input size are written into the file's metadata.
"""
import argparse

import mmvanilla  # isort: skip # noqa: F401, to check what is installed
from mmengine.config import DictAction

from mmvanilla.export.export import PRECISIONS, SUFFIXES, export
from mmvanilla.utils.building import read_config
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that the checkpoint is of')
    parser.add_argument('checkpoint', help='checkpoint of either form')
    parser.add_argument(
        'out',
        help='where to write, a name ending in ' + ', '.join(
            f'{suffix} ({name})' for name, suffix in SUFFIXES.items()))
    parser.add_argument('--format', choices=SUFFIXES, default='onnx')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument(
        '--part',
        choices=('model', 'backbone'),
        default='model',
        help='what to export; detectors and segmentors: backbone')
    parser.add_argument(
        '--dynamic-batch',
        action='store_true',
        help='take any number of images at a time')
    parser.add_argument(
        '--dynamic-size',
        action='store_true',
        help='take images of any size')
    parser.add_argument(
        '--samples',
        type=int,
        default=512,
        help='how many validation samples to compare on, at most; defaults '
        'to 512')
    parser.add_argument(
        '--calibration-samples',
        type=int,
        default=256,
        help='how many training samples to calibrate int8 on, at most; '
        'defaults to 256')
    parser.add_argument(
        '--tol',
        type=float,
        default=1e-4,
        help='largest difference that is let pass in fp32, relative to the '
        'largest output; defaults to 1e-4')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override the config, as in val_dataloader.batch_size=1')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = vars(parse_args())
    cfg = read_config(args.pop('config'), args.pop('cfg_options'))
    report = export(cfg, **args)
    if report.random:
        print('The validation data of the config is not there: compared on '
              'random images.')
    print(report.table())
    print(f'wrote {report.path}')


if __name__ == '__main__':
    main()
