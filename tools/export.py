#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Export a checkpoint for deployment, and verify the file in its runtime."""
import argparse

from options import add_config_options, add_data_options, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config of the checkpoint')
    add('checkpoint', help='checkpoint, in any form')
    add('out', help='where to write, a name ending in .onnx, .xml (openvino) '
        'or .pt2 (pt2 and aoti)')
    add('--format', choices=['onnx', 'openvino', 'pt2', 'aoti'],
        default='onnx', help='pt2 is a program of torch.export, aoti one that '
        'Inductor compiled ahead of time; defaults to onnx')
    add('--precision', choices=['fp32', 'fp16', 'bf16', 'int8'],
        default='fp32',
        help='int8 is quantized after training; defaults to fp32')
    add('--part', choices=['model', 'backbone'], default='model',
        help='what to export: a whole classifier, detector or segmentor, or '
        'its backbone; defaults to model')
    add('--dynamic-batch', action='store_true', help='accept any batch size')
    add('--dynamic-size', action='store_true', help='accept any image size')
    add('--preprocess', action='store_true',
        help='accept uint8 images, (N, H, W, 3) in RGB or (N, H, W, 1) in '
        'gray, and normalize them inside of the file')
    add('--opset', type=int, help='opset of ONNX, from 17; defaults to 18')
    add('--samples', type=int, default=512, help='maximum number of '
        'validation samples to compare on; defaults to 512')
    add('--calibration-samples', type=int, default=256, help='maximum number '
        'of training samples to calibrate int8 on; defaults to 256')
    add('--tol', type=float, default=1e-4, help='maximum allowed relative '
        'error of an output in fp32; defaults to 1e-4')
    add('--max-drop', type=float, default=1.0,
        help='maximum allowed drop of the top-1 accuracy, the AP or the mIoU '
        'in lower precisions, in percentage points; defaults to 1.0')
    add('--force', action='store_true', help='replace existing files')
    add_data_options(parser)
    add_config_options(parser)
    return parser.parse_args()


def main(config, checkpoint, cfg_options, allow_new_keys, data, check_images,
         **options) -> None:
    from mmvanilla.engine.own_data import use_data
    from mmvanilla.export import export
    from mmvanilla.utils.cfg_options import parse_cfg_options
    from mmvanilla.utils.configs import read_config
    cfg = read_config(config, parse_cfg_options(cfg_options), allow_new_keys)
    if data:
        for note in use_data(cfg, data, checkpoint, check_images):
            print(note)
    report = export(cfg, checkpoint, **options)
    print(report.table())
    print(f'wrote {report.path}')


if __name__ == '__main__':
    run(main, parse_args())
