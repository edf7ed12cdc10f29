#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Draw loss, metrics, learning rate and lambda of a training run."""
import argparse

from mmvanilla.engine.plot import plot_curves
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dir',
        help='work dir of the run; curves.png is written into it')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    print(f'wrote {plot_curves(parse_args().work_dir)}')


if __name__ == '__main__':
    main()
