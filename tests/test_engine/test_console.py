# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from tiny import tiny_cfg

from mmvanilla.engine.console import ConsoleHook, plot_curves, read_curves
from mmvanilla.utils.errors import UserError


class Terminal(io.StringIO):

    def isatty(self):
        return True


def run(cfg, monkeypatch, stream, *hooks) -> Runner:
    """Train with what the screen shows written to ``stream``."""
    monkeypatch.setattr(sys, 'stdout', stream)
    console = ConsoleHook()
    runner = console.quiet(Runner, logging.WARNING).from_cfg(cfg)
    for hook in (*hooks, console):
        runner.register_hook(hook)
    try:
        runner.train()
    finally:
        console.close()
    return runner


def test_log_file_and_screen(tmp_path, monkeypatch):
    cfg = tiny_cfg(tmp_path / 'work', epochs=2, decay_epochs=1)
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    stream = io.StringIO()
    runner = run(cfg, monkeypatch, stream)
    screen = stream.getvalue()
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    for text in ('System environment:', 'Hooks will be executed',
                 'paramwise_options', 'Config:'):
        assert text in log
        assert text not in screen
    for line in (r'model +ImageClassifier with VanillaNet, .* M parameters',
                 r'form +train', r'data +64 for training, 32 for validation',
                 r'classes +10: 0, 1, 2, 3, 4, 5 and 4 more', r'epochs +2',
                 r'device +cpu', f'work dir +{tmp_path}'):
        assert re.search(rf'\n  {line}', screen), line
        assert re.search(rf'\n  {line}', log), line
    # As scripts that read OpenMMLab's logs expect it.
    assert len(re.findall(r' - mmengine - INFO - Epoch\(train\) +\[\d\]\[\d/4'
                          r'\] .* lambda: [01]\.0000  loss: \d', screen)) == 8
    assert '\x1b[?25l' not in screen  # a cursor that a bar would hide

    best = runner.message_hub.get_info('best_ckpt')
    score = runner.message_hub.get_info('best_score')
    assert f'{score:.4g} in {best}' in screen
    assert (tmp_path / 'work' / 'curves.png').is_file()
    command = re.search(r'next +(mmvanilla-predict IMAGE) (.*) --out', screen)
    assert all(Path(x).is_file() for x in command[2].split())


class Fails(Hook):

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            raise ZeroDivisionError


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch):
    """Until the run ends, also where it fails."""
    cfg = tiny_cfg(tmp_path / 'work', epochs=2, decay_epochs=1)
    stream = Terminal()
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(ZeroDivisionError):
        run(cfg, monkeypatch, stream, Fails())
    screen = stream.getvalue()
    assert re.search(r'epoch 2/2  lambda 1.00  accuracy/top1 \d', screen)
    # The cursor is back, log lines are there, and go to the stream again.
    assert screen.rfind('\x1b[?25h') > screen.rfind('\x1b[?25l') > 0
    assert len(re.findall(r'Epoch\(train\)', screen)) == 8
    handler, = (x for x in MMLogger.get_current_instance().handlers
                if type(x) is logging.StreamHandler)
    assert handler.stream is sys.stdout is stream


def write(folder, lines):
    folder = folder / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(
        x if isinstance(x, str) else json.dumps(x) for x in lines))


def point(epoch, iteration, loss):
    return dict(lr=0.1, loss=loss, epoch=epoch, iter=iteration,
                step=iteration, time=0.5)


def test_curves_of_a_resumed_run_and_a_test(tmp_path):
    """What was run again counts once, whole lines only, tests not."""
    write(tmp_path / '20260101_000000', [
        point(1, 1, 4.0), point(1, 2, 2.0), {
            'accuracy/top1': 30., 'coco/bbox_mAP_s': -1, 'step': 1},
        point(2, 3, 9.0), {'accuracy/top1': 99., 'step': 2},
        '{"lr": 0.1, "l'])
    write(tmp_path / '20260101_000001', [{'accuracy/top1': 7., 'step': 0}])
    write(tmp_path / '20260102_000000', [
        point(2, 3, 1.0), {'accuracy/top1': 60., 'step': 2},
        point(3, 5, 0.5), {'accuracy/top1': 70., 'step': 3}])
    curves, unit = read_curves(tmp_path)
    assert unit == 'epoch'
    assert curves['loss'] == {1: 3.0, 2: 1.0, 3: 0.5}
    assert 'coco/bbox_mAP_s' not in curves  # of objects that are not there
    assert curves['accuracy/top1'] == {1: 30, 2: 60, 3: 70}
    assert plot_curves(tmp_path) == tmp_path / 'curves.png'
    # Three panels: there is no lambda in this run.
    width, height = Image.open(tmp_path / 'curves.png').size
    assert width == 4 * height


def test_curves_of_a_run_of_iterations(tmp_path):
    lines = [point(1, i, 1 / i) for i in (50, 100)]
    for line in lines:
        del line['epoch']
    write(tmp_path / 'run', [*lines, {'mIoU': 12., 'step': 100}])
    curves, unit = read_curves(tmp_path)
    assert unit == 'iteration'
    assert curves['loss'] == {50: 0.02, 100: 0.01}
    assert curves['mIoU'] == {100: 12}
    with pytest.raises(UserError, match='holds no scalars of a training run'):
        plot_curves(tmp_path / 'nowhere')
