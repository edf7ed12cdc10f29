# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""tools/export.py, as a user calls it."""
import torch
from mmengine.config import Config

from mmvanilla.export.export import read_metadata
from mmvanilla.utils.building import build_model

from ..tiny import run_tool, tiny_cfg


def files(tmp_path):
    cfg = tiny_cfg(tmp_path)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    cfg.dump(config)
    torch.save(
        dict(state_dict=build_model(Config.fromfile(config)).state_dict()),
        checkpoint)
    return config, checkpoint


def test_exports_and_tells(tmp_path):
    config, checkpoint = files(tmp_path)
    done = run_tool(
        'export.py',
        config,
        checkpoint,
        'net.pt2',
        '--format',
        'pt2',
        '--dynamic-batch',
        '--samples',
        '16',
        cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '16 real samples' in done.stdout
    assert 'top-1 agreement' in done.stdout and '100.00 %' in done.stdout
    assert 'wrote net.pt2' in done.stdout
    assert read_metadata(tmp_path / 'net.pt2', 'pt2')['part'] == 'model'


def test_refuses_in_one_sentence(tmp_path):
    config, checkpoint = files(tmp_path)
    before = sorted(tmp_path.iterdir())
    for out, options, sentence in (
        ('no/net.pt2', ['--format', 'pt2'], 'does not exist'),
        ('net.pt2', ['--format', 'pt2', '--precision', 'int8'], 'int8 is for'),
    ):
        done = run_tool(
            'export.py', config, checkpoint, out, *options, cwd=tmp_path)
        assert done.returncode == 1
        error = done.stderr.strip().split('\n')[-1]
        assert error.startswith('error: ') and sentence in error
    assert sorted(tmp_path.iterdir()) == before
