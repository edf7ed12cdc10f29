# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A run that takes seconds: the digits' config, narrowed and cut short."""
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner

import mmvanilla  # noqa: F401
from mmvanilla.checkpoints import safe_reading
from mmvanilla.engine.runs import train as run_config
from mmvanilla.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / 'configs' / 'vanillanet' / 'vanillanet-tiny_1xb64_digits.py'
NARROW = dict(dims=[4, 8, 8], strides=[2, 1])
# So few iterations reach the running statistics: with the default momentum
# the network puts out nearly the same for all images.
NORM = dict(type='BN', eps=1e-6, momentum=0.9)


def tiny_cfg(work_dir, epochs: int = 4, decay_epochs: int = 3) -> Config:
    """64 training images in batches of 16, that is 4 iterations an epoch.

    Nothing is random but the weights and the order of the data, which
    mmengine seeds and restores.
    """
    # Laid out by yapf, its text takes a second of a run.
    cfg = Config.fromfile(DIGITS, format_python_code=False)
    cfg.merge_from_dict(
        dict(work_dir=str(work_dir),
             model=dict(backbone=dict(
                            arch=dict(NARROW, _delete_=True), norm_cfg=NORM),
                        head=dict(in_channels=8, norm_cfg=NORM)),
             train_dataloader=dict(batch_size=16, dataset=dict(indices=64)),
             val_dataloader=dict(batch_size=16, dataset=dict(indices=32)),
             test_dataloader=dict(batch_size=16, dataset=dict(indices=32)),
             train_cfg=dict(max_epochs=epochs),
             default_hooks=dict(logger=dict(interval=1),
                                checkpoint=dict(interval=1, max_keep_ckpts=-1,
                                                save_best=None))))
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.param_scheduler.T_max = epochs
    cfg.custom_hooks = [
        dict(type='DeepTrainingHook', decay_epochs=decay_epochs)]
    return cfg


build = Runner.from_cfg


def train(cfg: Config) -> Runner:
    runner = build(cfg)
    with safe_reading():  # mmengine 0.10.7 cannot read its own checkpoints
        runner.train()
    return runner


def read(path) -> dict:
    """Read a checkpoint's weights."""
    from mmvanilla.checkpoints import read_checkpoint
    return read_checkpoint(path)


def lams(state_dict: dict) -> set:
    """Every lambda that a state dict holds."""
    return {float(value) for key, value in state_dict.items()
            if key.endswith('.lam')}


def assert_same_weights(a: dict, b: dict) -> None:
    """Assert that two state dicts are bit-identical."""
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def free_port() -> str:
    """A TCP port that nothing listens on."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def run_tool(*args, cwd, **env) -> subprocess.CompletedProcess:
    """Run one of tools/, as a user would, in another folder."""
    tool, *rest = map(str, args)
    command = [sys.executable] if tool.endswith('.py') else ['bash']
    paths = os.pathsep.join(
        filter(None,
               [str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH')]))
    return subprocess.run(
        command + [str(ROOT / 'tools' / tool)] + rest, cwd=cwd,
        env=dict(
            os.environ, PYTHONPATH=paths, PYTHON=sys.executable,
            OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PORT=free_port()) | env,
        capture_output=True, text=True, timeout=900)


def call_tool(monkeypatch, capfd, *args, cwd, code: int = 0) -> str:
    """Run one of tools/ in this process and return what it printed.

    A process of its own takes seconds to import torch.
    """
    tool, *rest = map(str, args)
    # A logger of an earlier test would write to the stream of that test.
    MMLogger._instance_dict.clear()
    monkeypatch.chdir(cwd)
    monkeypatch.syspath_prepend(ROOT / 'tools')  # as for a script
    monkeypatch.setattr(sys, 'argv', [tool] + rest)
    capfd.readouterr()
    if code:
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        assert exit_.value.code == code
    else:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    return ''.join(capfd.readouterr())


def refused(monkeypatch, capfd, *args, cwd) -> str:
    """Run one of tools/ in this process and return its one line of error."""
    printed = call_tool(monkeypatch, capfd, *args, cwd=cwd, code=1)
    assert 'Traceback' not in printed, printed
    errors = [x for x in printed.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1, printed
    return errors[0]


def run(cfg, folder, **options) -> Runner:
    """Train as the tool does."""
    cfg.dump(folder / 'config.py')
    return run_config(str(folder / 'config.py'), **options)


def refusal(cfg, folder, **options) -> str:
    with pytest.raises(UserError) as error:
        run(cfg, folder, **options)
    assert not list(folder.rglob('*.pth'))
    assert '\n' not in str(error.value)
    return str(error.value)
