#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predict an image or a folder of images.

The model is a classifier, a detector of mmdetection or a segmentor of
mmsegmentation. The weights of a config OUT.py default to OUT.pth beside it.
"""
import argparse

from mmvanilla.engine.predict import predict
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', help='an image or a folder of images')
    parser.add_argument(
        'model', help='a config, or the name of a model, as in list_models')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='the weights; defaults to those beside the config, else its '
        'load_from, or the published ones of a name')
    parser.add_argument(
        '--out', help='folder for images with the predictions drawn in')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='merge the model, in memory, first')
    parser.add_argument(
        '--top',
        type=int,
        default=5,
        help='how many classes or detections to list; defaults to 5')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    print(predict(**vars(parse_args())))


if __name__ == '__main__':
    main()
