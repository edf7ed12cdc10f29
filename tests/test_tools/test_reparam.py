# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re

import pytest
import torch
from mmengine.config import Config
from narrow import randomize
from tiny import call_tool, read, refused, tiny_cfg

from mmvanilla.reparam import reparameterize, set_lam
from mmvanilla.utils.configs import build_model, read_config


@pytest.fixture
def folder(tmp_path):
    """A folder with config.py, done.pth (lambda 1) and half.pth (0.75)."""
    tiny_cfg(tmp_path / 'work').dump(tmp_path / 'config.py')
    model = randomize(build_model(read_config(str(tmp_path / 'config.py'))))
    for name, lam in (('done.pth', 1), ('half.pth', 0.75)):
        set_lam(model, lam)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / name)
    return tmp_path


def files(folder):
    return {p.name: p.read_bytes() if p.is_file() else None
            for p in folder.iterdir()}


def cell(table: str, row: str) -> list:
    """The numbers in a row of the printed table."""
    line, = re.findall(rf'^\| {row}(.*)', table, re.M)
    return [float(x) for x in re.findall(r'[\d.]+(?:e-?\d+)?', line)]


def test_merges_and_exports(folder, monkeypatch, capfd):
    before = files(folder)
    out = call_tool(monkeypatch, capfd, 'reparam.py', 'config.py', 'done.pth',
                    'out.pth', '--samples', 20, cwd=folder)
    after = files(folder)
    assert set(after) == set(before) | {'out.pth', 'out.py'}
    assert before.items() <= after.items()
    deployed = build_model(Config.fromfile(folder / 'out.py'))
    content = read(folder / 'out.pth')
    deployed.load_state_dict(content['state_dict'], strict=True)
    meta = content['meta']
    assert meta['lam'] == 1 and meta['form'] == 'deploy'
    assert meta['max_relative_error'] < meta['tolerance'] == 1e-4

    # What the table says is so.
    assert cell(out, 'layers converted') == [7]
    assert '20 real samples of 10 of 10 classes' in out
    assert cell(out, 'maximum relative error') == [
        pytest.approx(meta['max_relative_error'], rel=0.01)]
    assert cell(out, 'top-1 agreement') == [100, 20]
    for row in 'MACs', 'size of the weights', 'parameters', 'median latency':
        assert len(cell(out, row)) == 2

    out = call_tool(
        monkeypatch, capfd, 'export.py', 'out.py', 'out.pth', 'net.pt2',
        '--format', 'pt2', '--dynamic-batch', '--samples', 16, cwd=folder)
    assert '16 real samples of ' in out
    assert cell(out, 'top-1 agreement') == [100, 16]
    assert 'wrote net.pt2' in out and (folder / 'net.pt2').is_file()


def _unfit(folder):
    content = read(folder / 'done.pth')
    del content['state_dict']['backbone.stem.act.conv.weight']
    torch.save(content, folder / 'unfit.pth')


def _merged(folder):
    reparameterize(read_config(str(folder / 'config.py')),
                   folder / 'done.pth', folder / 'merged.pth', samples=1)


REFUSALS = {
    'lambda below 1': (
        None, ['config.py', 'half.pth', 'out.pth'],
        r'half\.pth: cannot merge "backbone\.stem\.conv": .* is 0\.75, not 1'),
    'over the tolerance': (
        None, ['config.py', 'done.pth', 'out.pth', '--tol', '1e-12'],
        r'of sample \d+ is [\d.e-]+, over the tolerance 1e-12'),
    'does not fit': (
        _unfit, ['config.py', 'unfit.pth', 'out.pth'],
        r'unfit\.pth does not fit the config: .*stem\.act\.conv\.weight'),
    'out is the checkpoint': (
        None, ['config.py', 'done.pth', 'done.pth', '--force'],
        r'done\.pth: this command reads it'),
    'out.py is the config': (
        None, ['config.py', 'done.pth', 'config.pth', '--force'],
        r'cannot write to config\.py: this command reads it'),
    'out.py exists': (
        lambda folder: (folder / 'out.py').write_text('mine'),
        ['config.py', 'done.pth', 'out.pth'], r'out\.py: it exists.*--force'),
    'another suffix': (
        None, ['config.py', 'done.pth', 'out.onnx'], r'must end in \.pth'),
    'merged already': (
        _merged, ['config.py', 'merged.pth', 'out.pth'],
        r'merged\.pth does not fit .* in deploy form'),
    'merged already, by its config': (
        _merged, ['merged.py', 'merged.pth', 'out.pth'],
        r'merged\.py has no layer to convert: it is in deploy form already'),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_refusals(folder, monkeypatch, capfd, case):
    prepare, args, message = REFUSALS[case]
    if prepare:
        prepare(folder)
    before = files(folder)
    error = refused(monkeypatch, capfd, 'reparam.py', *args, cwd=folder)
    assert re.search(message, error), error
    assert files(folder) == before
