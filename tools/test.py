#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint of any OpenMMLab config."""
import argparse
import os

from mmengine.config import DictAction

from mmvanilla.engine.launch import test
from mmvanilla.utils.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='merge the model, in memory, before it is tested')
    parser.add_argument(
        '--work-dir',
        help='where the metrics go; defaults to work_dirs/CONFIG')
    parser.add_argument(
        '--out', help='file for the results, .pkl, .json or .yaml')
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        default='pred',
        help='what --out holds: predictions or metrics')
    parser.add_argument(
        '--show-dir', help='folder for images with the predictions drawn in')
    parser.add_argument(
        '--show', action='store_true', help='show them in a window')
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every so many images')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that a window stays')
    parser.add_argument(
        '--amp', action='store_true', help='test in mixed precision')
    parser.add_argument(
        '--tta', action='store_true', help='average over augmentations')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override the config, as in test_dataloader.batch_size=1')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes, where there are several')
    # What torch's launcher passes to each process.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@exit_on_user_error
def main() -> None:
    args = parse_args()
    test(
        args.config,
        args.checkpoint,
        deploy=args.deploy,
        work_dir=args.work_dir,
        out=args.out,
        out_item=args.out_item,
        show_dir=args.show_dir,
        show=args.show,
        interval=args.interval,
        wait_time=args.wait_time,
        amp=args.amp,
        tta=args.tta,
        cfg_options=args.cfg_options,
        launcher=args.launcher)


if __name__ == '__main__':
    main()
