#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a trained checkpoint to its deploy or fine-tune form.

Writes OUT.pth and beside it OUT.py, a config that builds that form, after
checking that the outputs are the same.
"""
import argparse

from mmvanilla.engine.options import add_config_options, add_data_options
from mmvanilla.engine.own_images import use_image_folder
from mmvanilla.reparam.merge import reparameterize
from mmvanilla.utils.building import read_config
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config that the checkpoint is of')
    parser.add_argument(
        'checkpoint', help='checkpoint in train or fine-tune form')
    parser.add_argument('out', help='where to write, a name ending in .pth')
    parser.add_argument(
        '--tol',
        type=float,
        default=1e-4,
        help='maximum allowed relative error of an output; defaults to 1e-4')
    parser.add_argument(
        '--samples',
        type=int,
        default=64,
        help='maximum number of validation samples to compare on; defaults to '
        '64')
    add_data_options(parser)
    parser.add_argument(
        '--form',
        choices=['deploy', 'finetune'],
        default='deploy',
        help='form to convert to; defaults to deploy')
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace OUT.pth and OUT.py even if mmvanilla did not write them')
    add_config_options(parser)
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options, args.allow_new_keys)
    if args.data:
        use_image_folder(cfg, args.data, args.checkpoint, args.check_images)
    report = reparameterize(cfg, args.checkpoint, args.out, args.tol,
                            args.samples, args.form, args.force)
    if report.random:
        print('The validation data of the config is not there: compared on '
              'random images.')
    print(report.table())
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
