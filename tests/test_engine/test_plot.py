# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json

import pytest
from PIL import Image

from mmvanilla.engine.plot import plot_curves, read_curves
from mmvanilla.utils.errors import UserError


def write(folder, lines):
    folder = folder / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(
        x if isinstance(x, str) else json.dumps(x) for x in lines))


def train(epoch, iteration, loss):
    return dict(lr=0.1, loss=loss, epoch=epoch, iter=iteration,
                step=iteration, time=0.5)


def test_a_resumed_run_and_a_test(tmp_path):
    """What was run again counts once, whole lines alone, tests not."""
    write(tmp_path / '20260101_000000', [
        train(1, 1, 4.0), train(1, 2, 2.0), {'accuracy/top1': 30., 'step': 1},
        train(2, 3, 9.0), {'accuracy/top1': 99., 'step': 2},
        train(4, 7, 9.0), '{"lr": 0.1, "l'])
    write(tmp_path / '20260101_000001', [{'accuracy/top1': 7., 'step': 0}])
    write(tmp_path / '20260102_000000', [
        train(2, 3, 1.0), {'accuracy/top1': 60., 'step': 2},
        train(3, 5, 0.5), {'accuracy/top1': 70., 'step': 3}])
    curves, unit = read_curves(tmp_path)
    assert unit == 'epoch'
    assert curves['loss'] == {1: 3.0, 2: 1.0, 3: 0.5}
    assert curves['accuracy/top1'] == {1: 30, 2: 60, 3: 70}
    assert 'time' not in curves
    assert plot_curves(tmp_path) == tmp_path / 'curves.png'
    # Three panels: there is no lambda in this run.
    width, height = Image.open(tmp_path / 'curves.png').size
    assert width == 4 * height


def test_a_run_of_iterations(tmp_path):
    lines = [train(1, i, 1 / i) for i in (50, 100)]
    for line in lines:
        del line['epoch']
    write(tmp_path / 'run', [*lines, {'mIoU': 12., 'step': 100}])
    curves, unit = read_curves(tmp_path)
    assert unit == 'iteration'
    assert curves['loss'] == {50: 0.02, 100: 0.01}
    assert curves['mIoU'] == {100: 12}


def test_nothing_to_draw(tmp_path):
    with pytest.raises(UserError, match='no folder .*nowhere'):
        plot_curves(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='holds no scalars of a training run'):
        plot_curves(tmp_path)
