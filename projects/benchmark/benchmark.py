#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Time forms of networks on this machine, interleaved.

Prints a Markdown table. ``ratio`` is the time over that of the plain PyTorch
form (with --train, of the train form). ``share`` is the rate over that of a
matrix product on this machine, measured in the same run. On a GPU, ``device``
is the time without launches, and ``share`` and ``device share`` are the limit
over both times: the larger of bytes (weights, images, scores) over the rate of
a copy and operations over that of a matrix product.
"""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('models', nargs='+', help='6, VanillaNet-6, ResNet-50, Swin-T, any '
        'name in mmpretrain, or the config of a detector or segmentor: a path '
        'or mmdet::...')
    add('--forms', nargs='+', metavar='FORM',
        help='forms to time: train, plain, channels_last, eager, inductor, '
        'aoti, onnxruntime, openvino; append :fp32, :bf16 or :int8 for '
        'another precision than --dtype; defaults to plain eager. With '
        '--device cuda: [channels_last-][plain|train][-compile|'
        '-reduce-overhead|-max-autotune][-graph], inductor, triton; append '
        ':fp32, :tf32, :fp16 or :bf16. With --train: plain, train, with_cp, '
        'finetune; on a GPU [channels_last-]FORM[-compile]')
    add('--batches', nargs='+', type=int, default=[1], help='defaults to 1')
    add('--threads', type=int, help="defaults to PyTorch's own default")
    add('--dtype', choices=('fp32', 'tf32', 'fp16', 'bf16'), default='fp32',
        help='precision (with --train, fp16 and bf16 are autocast); defaults '
        'to fp32; tf32 and fp16 are for --device cuda')
    add('--device', choices=('cpu', 'cuda'), default='cpu')
    add('--size', nargs='+', type=int, default=[224], help='side of the '
        'images, or height and width, in pixels; defaults to 224')
    add('--repeats', type=int, default=20, help='defaults to 20')
    add('--warmup', type=int, default=2,
        help='rounds before the first timed one; defaults to 2')
    add('--train', action='store_true', help='measure a training step '
        '(forward, backward, AdamW) and its memory')
    add('--together', action='store_true', help='interleave all networks, to '
        'compare one with another')
    add('--budget', type=float, metavar='SECONDS', help='start no network '
        '(on a GPU, no form) after so long, and report what there is')
    add('--out', metavar='PREFIX', help='write PREFIX.json, .md and .png')
    add('--force', action='store_true', help='replace existing files')
    return parser.parse_args()


if __name__ == '__main__':
    args = parse_args()
    from measure import main

    from mmvanilla.utils.errors import exit_on_user_error
    exit_on_user_error(main)(**vars(args))
