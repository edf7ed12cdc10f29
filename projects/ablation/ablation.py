#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a grid of small networks and compare them with the paper.

Writes NAME.md, NAME.json and NAME.png. Finished runs are kept, so a grid that
was interrupted continues where it stopped.
"""
import argparse
from pathlib import Path

GRIDS = Path(__file__).resolve().parent / 'configs'
NAMES = ', '.join(sorted(path.stem for path in GRIDS.glob('*.py')))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'name', help=f'a grid ({NAMES}) or the file of another')
    parser.add_argument(
        '--seeds', type=int, default=3, help='runs of each row; defaults to 3')
    parser.add_argument(
        '--epochs', type=int, help='defaults to the epochs of the grid')
    parser.add_argument(
        '--out', default='work_dirs/ablation',
        help='folder for the results; defaults to work_dirs/ablation')
    parser.add_argument(
        '--workers', type=int,
        help='runs at the same time; defaults to the number of cores')
    return parser.parse_args()


def main(name: str, out: str, **options) -> None:
    from grid import run_ablation
    from report import make_table, write_report

    from mmvanilla.utils.errors import UserError
    path = Path(name)
    if path.suffix != '.py':
        path = GRIDS / f'{name}.py'
        if not path.exists():
            raise UserError(f'there is no grid "{name}": use {NAMES}, or the '
                            'file of another')
    ablation = run_ablation(path, out, **options)
    paths = write_report(ablation, out)
    print(make_table(ablation))
    print('wrote', *paths)


if __name__ == '__main__':
    args = parse_args()
    from mmvanilla.utils.errors import exit_on_user_error
    exit_on_user_error(main)(**vars(args))
