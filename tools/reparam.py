#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a trained checkpoint to its deploy or fine-tune form.

Writes OUT.pth and beside it OUT.py, a config that builds that form, after
checking that the outputs are the same.
"""
import argparse

from options import add_config_options, add_data_options, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('config', help='config that the checkpoint is of')
    add('checkpoint', help='checkpoint in train or fine-tune form')
    add('out', help='where to write, a name ending in .pth')
    add('--tol', type=float, default=1e-4, help='maximum allowed relative '
        'error of an output; defaults to 1e-4')
    add('--samples', type=int, default=64, help='maximum number of validation '
        'samples to compare on; defaults to 64')
    add_data_options(parser)
    add('--form', choices=['deploy', 'finetune'], default='deploy',
        help='form to convert to; defaults to deploy')
    add('--force', action='store_true', help='replace OUT.pth and OUT.py '
        'where they exist')
    add_config_options(parser)
    return parser.parse_args()


def main(config, checkpoint, out, data, check_images, cfg_options,
         allow_new_keys, **options) -> None:
    from mmvanilla.reparam import reparameterize
    from mmvanilla.utils.cfg_options import parse_cfg_options
    from mmvanilla.utils.configs import read_config

    cfg = read_config(config, parse_cfg_options(cfg_options), allow_new_keys)
    if data:
        from mmvanilla.engine.own_data import use_data
        for note in use_data(cfg, data, checkpoint, check_images):
            print(note)
    report = reparameterize(cfg, checkpoint, out, **options)
    if report.comparison.samples.random:
        print('The validation data of the config is not there: compared on '
              'random images.')
    print(report.table())
    print(f'wrote {out}')


if __name__ == '__main__':
    run(main, parse_args())
