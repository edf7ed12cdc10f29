# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Hostile files, wherever one of our commands reads a checkpoint."""
import json
import multiprocessing
import os

import hostile
import pytest
import torch
from mmengine.runner import load_checkpoint as load_by_mmengine
from tiny import refused, tiny_cfg
from torch import nn

from mmvanilla.checkpoints import (
    load_checkpoint,
    load_weights,
    read_checkpoint,
    safe_reading,
)
from mmvanilla.utils.errors import UserError

COUNT = 100


def test_generated_files(tmp_path):
    """No code runs, nothing crashes, each refusal is one sentence."""
    # One that has imported all; a crash would end this one.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tiny'])
    reader = context.Process(target=hostile.read_all, args=(tmp_path, COUNT))
    reader.start()
    reader.join()
    assert reader.exitcode == 0, (tmp_path / 'now').read_text()
    result = json.loads((tmp_path / 'result.json').read_text())
    assert not (tmp_path / 'canary').exists()
    assert result['wrong'] == {}
    assert len(result['refused']) + len(result['accepted']) == COUNT
    assert {*hostile.tricks(tmp_path), *hostile.broken_files()} <= set(
        result['refused'])
    # The mutated files were right before.
    for original in hostile.originals():
        hostile.write(tmp_path / 'a.pth', *original)
        read_checkpoint(tmp_path / 'a.pth')


@pytest.fixture
def evil(tmp_path) -> tuple:
    """A checkpoint that runs a command, and the file that it creates."""
    path, canary = tmp_path / 'evil.pth', tmp_path / 'canary'
    command = hostile.payloads(canary)['os.system']
    hostile.write(path, hostile.checkpoint(command))
    return str(path), canary


READERS = dict(
    official=lambda path: load_weights(nn.Linear(1, 1), f'vanillanet://{path}'),
    mmengine=lambda path: load_by_mmengine(nn.Linear(1, 1), path),
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
    ['reparam.py', 'CONFIG', 'FILE', 'out.pth'],
    ['export.py', 'CONFIG', 'FILE', 'out.pt2', '--format', 'pt2'],
    ['convert.py', 'FILE', 'out.pth'],
], ids=' '.join)
def test_commands(tmp_path, monkeypatch, capfd, evil, command):
    path, canary = evil
    config = str(tmp_path / 'config.py')
    tiny_cfg(tmp_path / 'run', epochs=1).dump(config)
    command = [x.replace('CONFIG', config).replace('FILE', path)
               for x in command]
    error = refused(monkeypatch, capfd, *command, cwd=tmp_path)
    assert 'is refused: it asks for' in error and 'system' in error
    assert not canary.exists() and not list(tmp_path.glob('out.*'))
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_texts_that_mmengine_evaluates_are_left_out(tmp_path):
    texts = dict(config='exit()', cfg='exit()')
    torch.save(dict(meta=dict(texts, epoch=1), message_hub=dict(
        runtime_info=dict(texts))), tmp_path / 'a.pth')
    assert load_checkpoint(tmp_path / 'a.pth') == dict(
        meta=dict(epoch=1), message_hub=dict(runtime_info={}))
