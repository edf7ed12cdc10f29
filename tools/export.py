#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Export a checkpoint for deployment and verify the file in its own runtime.

A checkpoint in train or fine-tune form is merged first. Labels, mean, std,
order of channels and input size are written into the file's metadata.
"""
import argparse

from mmvanilla.engine.options import add_config_options, add_data_options
from mmvanilla.engine.own_images import use_image_folder
from mmvanilla.export import export
from mmvanilla.export.backends import BACKENDS, PRECISIONS
from mmvanilla.utils.building import read_config
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the checkpoint')
    parser.add_argument('checkpoint', help='checkpoint, in any form')
    parser.add_argument(
        'out',
        help='where to write, a name ending in ' + ', '.join(
            f'{backend.SUFFIX} ({name})'
            for name, backend in BACKENDS.items()))
    parser.add_argument(
        '--format',
        choices=BACKENDS,
        default='onnx',
        help='pt2 is a program of torch.export, aoti one that Inductor '
        'compiled ahead of time; defaults to onnx')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='fp32',
        help='int8 is quantized after training; defaults to fp32')
    parser.add_argument(
        '--part',
        choices=('model', 'backbone'),
        default='model',
        help='what to export: a whole classifier, detector or segmentor, or '
        'its backbone; defaults to model')
    parser.add_argument(
        '--dynamic-batch',
        action='store_true',
        help='accept batches of any size')
    parser.add_argument(
        '--dynamic-size',
        action='store_true',
        help='accept images of any size')
    parser.add_argument(
        '--samples',
        type=int,
        default=512,
        help='maximum number of validation samples to compare on; defaults '
        'to 512')
    parser.add_argument(
        '--calibration-samples',
        type=int,
        default=256,
        help='maximum number of training samples to calibrate int8 on; '
        'defaults to 256')
    parser.add_argument(
        '--tol',
        type=float,
        default=1e-4,
        help='maximum allowed relative error of an output in fp32; defaults '
        'to 1e-4')
    parser.add_argument(
        '--max-drop',
        type=float,
        default=1.0,
        help='maximum allowed drop of the top-1 accuracy, the AP or the mIoU '
        'in bf16 and int8, in percentage points; defaults to 1.0')
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace an existing file that mmvanilla did not write')
    add_data_options(parser)
    add_config_options(parser)
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = vars(parse_args())
    cfg = read_config(
        args.pop('config'), args.pop('cfg_options'),
        args.pop('allow_new_keys'))
    data, check_images = args.pop('data'), args.pop('check_images')
    if data:
        use_image_folder(cfg, data, args['checkpoint'], check_images)
    report = export(cfg, **args)
    if report.verification.random:
        print('The validation data of the config is not there: compared on '
              'random images.')
    print(report.table())
    print(f'wrote {report.path}')


if __name__ == '__main__':
    main()
