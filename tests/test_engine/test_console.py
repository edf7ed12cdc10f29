# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tiny import ROOT, tiny_cfg

from mmvanilla.engine.console import ConsoleHook, with_short_log


def run(cfg, monkeypatch, stream, *hooks) -> Runner:
    """Train with what the screen shows written to ``stream``."""
    monkeypatch.setattr(sys, 'stdout', stream)
    cfg.experiment_name = f'console_{os.path.basename(cfg.work_dir)}'
    runner = with_short_log(Runner).from_cfg(cfg)
    hook = ConsoleHook()
    for other in (*hooks, hook):
        runner.register_hook(other)
    try:
        runner.train()
    finally:
        hook.close()
    return runner


def test_log_file_and_screen(tmp_path, monkeypatch):
    cfg = tiny_cfg(tmp_path / 'work', epochs=2, decay_epochs=1)
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    with open(tmp_path / 'screen', 'w') as stream:
        runner = run(cfg, monkeypatch, stream)
    screen = (tmp_path / 'screen').read_text()
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    for text in ('System environment:', 'Hooks will be executed',
                 'paramwise_options', 'Config:'):
        assert text in log
        assert text not in screen
    for line in (r'model +ImageClassifier with VanillaNet.* M parameters',
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
    command = re.search(r'next +python (tools/test.py .*)', screen)[1].split()
    assert all(Path(ROOT, x).is_file() for x in command)


def test_a_terminal_gets_a_progress_bar(tmp_path):
    """Run in a process of its own, whose output is a terminal."""
    tiny_cfg('work', epochs=2, decay_epochs=1).dump(tmp_path / 'config.py')
    master, slave = pty.openpty()
    with subprocess.Popen(
            [sys.executable, ROOT / 'tools/train.py', 'config.py'],
            cwd=tmp_path, stdout=slave, stderr=subprocess.PIPE, stdin=slave,
            env=dict(os.environ, PYTHONPATH=str(ROOT), TERM='xterm',
                     COLUMNS='200', OMP_NUM_THREADS='1')) as process:
        os.close(slave)
        output = b''
        try:
            while block := os.read(master, 1 << 16):
                output += block
        except OSError:  # the other end was closed
            pass
        error = process.stderr.read().decode()
    os.close(master)
    assert process.returncode == 0, error
    screen = output.decode()
    assert re.search(r'epoch 2/2  lambda 1.00  accuracy/top1 \d', screen)
    # The cursor is back and log lines are whole.
    assert screen.rfind('\x1b[?25h') > screen.rfind('\x1b[?25l') > 0
    assert len(re.findall(r'Epoch\(train\) .*loss: \d', screen)) == 8
    assert 'Could not import' not in screen + error
    assert 'MultiScaleDeformableAttention' not in screen + error


def test_the_bar_ends_with_a_run_that_fails(tmp_path, monkeypatch):
    class Fails(Hook):

        def after_train_iter(self, *args, **kwargs):
            raise ZeroDivisionError

    class Terminal:

        def __init__(self):
            self.text = ''

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    stream = Terminal()
    with pytest.raises(ZeroDivisionError):
        run(cfg, monkeypatch, stream, Fails())
    assert stream.text.rfind('\x1b[?25h') > stream.text.rfind('\x1b[?25l') > 0
    screen, = (x for x in MMLogger.get_current_instance().handlers
               if type(x) is logging.StreamHandler)
    assert screen.stream is stream
