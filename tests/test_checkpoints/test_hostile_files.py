# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Hostile files, wherever one of our commands reads a checkpoint."""
import json
import os
import subprocess
import sys

import hostile
import pytest
import torch
from mmengine.runner import load_checkpoint as load_by_mmengine
from mmpretrain.registry import MODELS
from tiny import ROOT, build, call_tool, read, refused, tiny_cfg, train
from torch import nn

from mmvanilla.checkpoints import (
    convert,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    safe_reading,
)
from mmvanilla.utils.errors import UserError

COUNT = 150


def test_generated_files(tmp_path):
    """No code runs, nothing crashes, each refusal is one sentence."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    done = subprocess.run(
        [sys.executable, hostile.__file__, tmp_path, '0', str(COUNT),
         str(COUNT)],
        env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
        capture_output=True, text=True, check=False)
    now = (tmp_path / '0.now').read_text()
    assert done.returncode == 0, f'at {now}: {done.stderr[-2000:]}'
    result = json.loads(done.stdout.splitlines()[-1])
    assert not (tmp_path / 'canary').exists()
    assert result['wrong'] == {}
    assert len(result['refused']) + len(result['accepted']) == COUNT
    assert set(hostile.tricks(tmp_path)) <= set(result['refused'])
    # The mutated files were right before.
    for pickled in hostile.originals():
        hostile.write(tmp_path / 'a.pth', pickled,
                      {f'data/{i}': bytes(16) for i in range(8)})
        read_checkpoint(tmp_path / 'a.pth')


class RunsACommand:
    """A pickle of it runs a shell command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command, )


@pytest.fixture
def evil(tmp_path) -> tuple:
    """A checkpoint that runs a command, and the file that it creates."""
    canary = tmp_path / 'canary'
    torch.save(
        dict(state_dict=nn.Linear(1, 1).state_dict(),
             meta=RunsACommand(f'touch {canary}')), tmp_path / 'evil.pth')
    return str(tmp_path / 'evil.pth'), canary


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('config')
    tiny_cfg(folder / 'out', epochs=1).dump(folder / 'config.py')
    return str(folder / 'config.py')


def from_init_cfg(path: str) -> None:
    MODELS.build(
        dict(type='ResNet', depth=18,
             init_cfg=dict(type='Pretrained', checkpoint=path))
    ).init_weights()


READERS = dict(
    load_weights=lambda path: load_weights(nn.Linear(1, 1), path),
    convert=lambda path: convert(path, f'{path}.out.pth'),
    official=lambda path: load_weights(nn.Linear(1, 1), f'vanillanet://{path}'),
    mmengine=lambda path: load_by_mmengine(nn.Linear(1, 1), path),
    init_cfg=from_init_cfg,
    torch=lambda path: torch.load(path, weights_only=False),
    legacy_url=lambda path: torch.hub.load_state_dict_from_url(
        f'file://{path}', os.path.dirname(path)))


@pytest.mark.parametrize('reader', READERS)
def test_readers_inside_safe_reading(evil, reader):
    path, canary = evil
    with pytest.raises(UserError, match='refused: it asks for .*system') as e:
        with safe_reading():
            READERS[reader](path)
    assert '\n' not in str(e.value) and 'weights_only=False' in str(e.value)
    assert not canary.exists()
    # Read without care, the file does run a command.
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize('command', [
    ['train.py', 'CONFIG', '--resume', 'FILE'],
    ['train.py', 'CONFIG', '--cfg-options', 'load_from=FILE'],
    ['test.py', 'CONFIG', 'FILE'],
    ['test.py', 'CONFIG', 'FILE', '--deploy'],
    ['reparam.py', 'CONFIG', 'FILE', 'out.pth'],
    ['export.py', 'CONFIG', 'FILE', 'out.pt2', '--format', 'pt2'],
    ['convert.py', 'FILE', 'out.pth'],
], ids=' '.join)
def test_commands(tmp_path, monkeypatch, capfd, evil, config, command):
    path, canary = evil
    command = [x.replace('CONFIG', config).replace('FILE', path)
               for x in command]
    error = refused(monkeypatch, capfd, *command, cwd=tmp_path)
    assert 'is refused: it asks for' in error and 'system' in error
    assert not canary.exists() and not list(tmp_path.glob('out.*'))
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_texts_in_a_checkpoint_do_not_run(tmp_path, monkeypatch, capfd,
                                          config):
    """mmengine's runner evaluates meta['config'] when it resumes."""
    train(tiny_cfg(tmp_path / 'run', epochs=1, decay_epochs=1))
    code = f'open({str(tmp_path / "canary")!r}, "w").close()'
    content = read(tmp_path / 'run/epoch_1.pth')
    content['meta'].update(config=code, cfg=code)
    content['message_hub']['runtime_info']['cfg'] = code
    torch.save(content, tmp_path / 'a.pth')
    loaded = load_checkpoint(tmp_path / 'a.pth')
    assert not {'cfg', 'config'} & set(loaded['meta'])
    assert 'cfg' not in loaded['message_hub']['runtime_info']
    call_tool(monkeypatch, capfd, 'train.py', config, '--resume',
              tmp_path / 'a.pth', cwd=tmp_path)
    assert not (tmp_path / 'canary').exists()
    # mmengine by itself does run it.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    runner = build(tiny_cfg(tmp_path / 'other', epochs=1))
    try:
        runner.resume(str(tmp_path / 'a.pth'))
    except Exception:  # it is no config
        pass
    assert (tmp_path / 'canary').exists()
