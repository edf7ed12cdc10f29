#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Train a grid of small networks and compare them with the paper.

Writes NAME.md, NAME.json and NAME.png. Finished runs are kept, so a grid that
was interrupted continues where it stopped.
"""
import argparse
from pathlib import Path

from grid import run_ablation
from report import make_table, write_report

from mmvanilla.utils.errors import UserError, exit_on_user_error

GRIDS = Path(__file__).resolve().parent / 'configs'
NAMES = ', '.join(sorted(path.stem for path in GRIDS.glob('*.py')))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'name', help=f'a grid ({NAMES}) or the file of another')
    parser.add_argument(
        '--seeds',
        type=int,
        default=3,
        help='runs of each row, one for each seed; defaults to 3')
    parser.add_argument(
        '--epochs',
        type=int,
        help='epochs of each run; defaults to those of the grid')
    parser.add_argument(
        '--out',
        default='work_dirs/ablation',
        help='folder for the results; defaults to work_dirs/ablation')
    parser.add_argument(
        '--workers',
        type=int,
        help='runs at the same time; defaults to the number of cores')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_args()
    path = Path(args.name)
    if path.suffix != '.py':
        path = GRIDS / f'{args.name}.py'
        if not path.exists():
            raise UserError(f'there is no grid "{args.name}": take one of '
                            f'{NAMES}, or the file of another')
    ablation = run_ablation(path, args.out, args.seeds, args.epochs,
                            args.workers)
    paths = write_report(ablation, args.out)
    print(make_table(ablation))
    print('wrote', *paths)


if __name__ == '__main__':
    main()
