#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Draw loss, metrics, learning rate and lambda of a training run."""
import argparse

from options import run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('work_dir', help='work dir of the run; curves.png is written into it')
    return parser.parse_args()


def main(work_dir: str) -> None:
    from mmvanilla.engine.console import plot_curves
    print(f'wrote {plot_curves(work_dir)}')


if __name__ == '__main__':
    run(main, parse_args())
