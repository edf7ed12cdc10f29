# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""tools/export.py, as a user calls it."""
import torch
from mmengine.config import Config
from narrow import randomize
from tiny import call_tool, tiny_cfg

from mmvanilla.utils.configs import build_model


def test_exports_and_tells(tmp_path, monkeypatch, capfd):
    cfg = tiny_cfg(tmp_path)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    cfg.dump(config)
    model = randomize(build_model(Config.fromfile(config)))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    printed = call_tool(
        monkeypatch, capfd, 'export.py', config, checkpoint, 'net.pt2',
        '--format', 'pt2', '--dynamic-batch', '--samples', '16', cwd=tmp_path)
    assert '16 real samples of ' in printed
    assert 'top-1 agreement' in printed and '100.00 %' in printed
    assert 'wrote net.pt2' in printed
    assert (tmp_path / 'net.pt2').is_file()
