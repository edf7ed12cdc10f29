# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os

import torch
from golden import load
from tiny import refused, run_tool


def test_from_a_shell(tmp_path):
    theirs = load('plain')['state_dict']
    torch.save(
        dict(model=theirs, model_ema={k: v + 1 for k, v in theirs.items()}),
        tmp_path / 'src.pth')
    (tmp_path / 'dst.py').touch()
    done = run_tool('convert.py', 'src.pth', 'dst.pth', '--key', 'model',
                    '--force', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'train form, n = 3, 10 classes' in done.stdout
    assert sorted(os.listdir(tmp_path)) == ['dst.pth', 'dst.py', 'src.pth']
    found = torch.load(tmp_path / 'dst.pth')['state_dict']
    assert torch.equal(found['backbone.stem.conv.conv1.weight'],
                       theirs['stem1.0.weight'])


def test_refusal_is_one_line(tmp_path, monkeypatch, capfd):
    error = refused(monkeypatch, capfd, 'convert.py', 'none.pth', 'dst.pth',
                    cwd=tmp_path)
    assert error == 'error: cannot read none.pth: there is no such file'
    assert os.listdir(tmp_path) == []
