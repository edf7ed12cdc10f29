# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import runpy
import sys

import torch
from golden import load, same
from tiny import ROOT, refused

from mmvanilla.checkpoints import from_authors


def test_options_and_refusal(tmp_path, monkeypatch, capfd):
    error = refused(monkeypatch, capfd, 'convert.py', 'src.pth', 'dst.pth',
                    cwd=tmp_path)
    assert error == 'error: cannot read src.pth: there is no such file'
    assert os.listdir(tmp_path) == []
    theirs = load('plain')['state_dict']
    torch.save(dict(model=theirs, model_ema={}), 'src.pth')
    (tmp_path / 'dst.py').touch()
    monkeypatch.setattr(sys, 'argv', [
        'convert.py', 'src.pth', 'dst.pth', '--key', 'model', '--force'])
    runpy.run_path(str(ROOT / 'tools' / 'convert.py'), run_name='__main__')
    assert 'train form, n = 3, 10 classes' in capfd.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ['dst.pth', 'dst.py', 'src.pth']
    assert same(torch.load('dst.pth')['state_dict'], from_authors(theirs))
