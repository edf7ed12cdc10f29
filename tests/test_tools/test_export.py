# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""tools/export.py, as a user calls it."""
import torch
from mmengine.config import Config
from narrow import randomize
from tiny import refused, run_tool, tiny_cfg

from mmvanilla.export import read_metadata
from mmvanilla.utils.configs import build_model


def files(tmp_path):
    cfg = tiny_cfg(tmp_path)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    cfg.dump(config)
    model = randomize(build_model(Config.fromfile(config)))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return config, checkpoint


def test_exports_and_tells(tmp_path):
    config, checkpoint = files(tmp_path)
    done = run_tool(
        'export.py', config, checkpoint, 'net.pt2', '--format', 'pt2',
        '--dynamic-batch', '--samples', '16', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '16 real samples of ' in done.stdout
    assert 'top-1 agreement' in done.stdout and '100.00 %' in done.stdout
    assert 'wrote net.pt2' in done.stdout
    assert read_metadata(tmp_path / 'net.pt2')['part'] == 'model'


def test_refuses_in_one_sentence(tmp_path, monkeypatch, capfd):
    config, checkpoint = files(tmp_path)
    before = sorted(tmp_path.iterdir())
    error = refused(
        monkeypatch, capfd, 'export.py', config, checkpoint, 'net.pt2',
        '--format', 'pt2', '--precision', 'int8', cwd=tmp_path)
    assert 'has no int8' in error
    assert sorted(tmp_path.iterdir()) == before
