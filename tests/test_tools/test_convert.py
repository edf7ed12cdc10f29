# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from golden import load, relative_l2
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmpretrain import get_model

TOOL = Path(__file__).parents[2] / 'tools' / 'convert.py'


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run the tool in this process: exit code, stdout, stderr."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('name', ['plain', 'act4_deep', 'ada_pool'])
@pytest.mark.parametrize('form', ['train', 'deploy'])
def test_golden(tmp_path, tool, name, form):
    golden = load(name)
    theirs = golden if form == 'train' else golden['deploy']
    theirs = theirs['state_dict']
    src, dst, back = (tmp_path / f'{n}.pth' for n in ('src', 'dst', 'back'))
    torch.save(
        dict(model_ema=theirs, epoch=299, args=Namespace(model='x')), src)

    code, out, _ = tool(src, dst)
    assert code == 0
    n, classes = golden['kwargs']['act_num'], golden['kwargs']['num_classes']
    assert f'{form} form, n = {n}, {classes} classes' in out

    cfg = Config.fromfile(tmp_path / 'dst.py')
    assert cfg.load_from == str(dst)
    if name == 'ada_pool':
        # No tensor tells that, and the tool said so.
        assert 'Correct arch in the config' in out
        cfg.model.backbone.arch.ada_pool = golden['kwargs']['ada_pool']
    model = get_model(cfg)
    load_checkpoint(model, cfg.load_from, strict=True)
    wanted = golden['deploy'] if form == 'deploy' else golden['eval'][1.0]
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, wanted['logits']) < 1e-5

    code, _, _ = tool(dst, back, '--to', 'authors', '--key', 'model_ema')
    assert code == 0
    assert same(torch.load(back)['model_ema'], theirs)
    # The config beside it loads it too, through vanillanet://.
    cfg = Config.fromfile(tmp_path / 'back.py')
    model = get_model(cfg)
    load_checkpoint(model, cfg.load_from, strict=True)


def test_key(tmp_path, tool):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'src.pth', tmp_path / 'dst.pth'
    torch.save(
        dict(model=theirs, model_ema={k: v + 1 for k, v in theirs.items()}),
        src)
    key = 'backbone.stem.conv.conv1.weight'
    for args, added in [((), 1), (('--key', 'model_ema'), 1),
                        (('--key', 'model'), 0)]:
        assert tool(src, dst, *args)[0] == 0
        found = torch.load(dst)['state_dict'][key]
        assert torch.equal(found, theirs['stem1.0.weight'] + added)


def test_refusal_is_one_line(tmp_path, tool):
    code, out, err = tool(tmp_path / 'none.pth', tmp_path / 'dst.pth')
    assert code == 1 and out == ''
    assert err == (f'error: cannot read {tmp_path / "none.pth"}: there is no '
                   'such file\n')
    assert os.listdir(tmp_path) == []


def test_from_a_shell(tmp_path):
    torch.save(dict(model=load('plain')['state_dict']), tmp_path / 'src.pth')
    done = subprocess.run(
        [sys.executable, TOOL, 'src.pth', 'dst.pth'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(TOOL.parents[1])},
        capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ['dst.pth', 'dst.py', 'src.pth']
