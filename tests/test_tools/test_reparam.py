# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import hashlib
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from golden import load, model_cfg, relative_l2
from mmengine.config import Config
from tiny import ROOT, read, refused, run_tool, tiny_cfg, train

from mmvanilla.reparam.merge import reparameterize
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with config.py, done.pth (lambda 1) and half.pth (2 / 3)."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = tiny_cfg(folder / 'work')
    cfg.dump(folder / 'config.py')
    train(cfg)
    os.replace(folder / 'work' / 'epoch_4.pth', folder / 'done.pth')
    os.replace(folder / 'work' / 'epoch_3.pth', folder / 'half.pth')
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """Links to it in a folder of one's own."""
    for name in ('config.py', 'done.pth', 'half.pth'):
        os.link(trained / name, tmp_path / name)
    return tmp_path


def files(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob('*') if p.is_file()
    }


def cell(table: str, row: str) -> list:
    """The numbers in a row of the printed table."""
    line = next(x for x in table.splitlines() if x.startswith(f'| {row}'))
    return [
        float(x) for x in re.findall(r'-?[\d.]+(?:e-?\d+)?',
                                     line.partition(row)[2].replace(',', ''))
    ]


def test_merges_verifies_and_writes(folder):
    before = files(folder)
    done = run_tool('reparam.py', 'config.py', 'done.pth', 'out.pth',
                    '--samples', 20, cwd=folder)
    assert done.returncode == 0, done.stderr
    after = files(folder)
    assert set(after) == set(before) | {'out.pth', 'out.py'}
    assert all(after[name] == before[name] for name in before)

    cfg = read_config(str(folder / 'config.py'))
    source = build_model(cfg)
    source.load_state_dict(read(folder / 'done.pth')['state_dict'])
    deployed = build_model(Config.fromfile(folder / 'out.py'))
    content = read(folder / 'out.pth')
    deployed.load_state_dict(content['state_dict'], strict=True)
    x = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            deployed(x), source(x), rtol=1e-4, atol=1e-5)

    # Weights and meta only.
    meta = content['meta']
    assert set(content) == {'state_dict', 'meta'}
    assert meta['source_sha256'] == before['done.pth']
    assert meta['lam'] == 1 and meta['form'] == 'deploy'
    assert meta['tolerance'] == 1e-4

    # What the table says is so.
    out = done.stdout
    assert cell(out, 'layers converted') == [7]
    assert 'compared on 32 real samples' in out  # two batches of 16
    sizes = [
        sum(p.numel() for p in m.parameters()) / 1e6
        for m in (source, deployed)
    ]
    assert cell(out, 'parameters') == pytest.approx(sizes, abs=0.005)
    assert 0 < cell(out, 'maximum relative error')[0] < 1e-4
    assert cell(out, 'top-1 agreement') == [100, 32]
    macs = cell(out, 'MACs')
    latency = cell(out, 'median latency')
    sizes = cell(out, 'file size')
    assert macs[0] > macs[1] > 0 and len(latency) == 2
    assert sizes[0] > sizes[1] > 0


def test_takes_the_authors_file_by_its_address(folder):
    golden = load('plain')
    torch.save(dict(model=golden['state_dict']), folder / 'theirs.pth')
    cfg = Config.fromfile(folder / 'config.py')
    cfg.model.update(model_cfg(golden))
    cfg.model.backbone.in_channels = 3
    cfg.model.data_preprocessor.update(mean=[0] * 3, std=[1] * 3)
    cfg.dump(folder / 'theirs.py')
    done = run_tool(
        'reparam.py', 'theirs.py', f'vanillanet://{folder}/theirs.pth',
        'out.pth', '--samples', 2, '--cfg-options',
        'val_dataloader=None', cwd=folder)
    assert done.returncode == 0, done.stderr
    merged = build_model(Config.fromfile(folder / 'out.py'))
    merged.load_state_dict(read(folder / 'out.pth')['state_dict'])
    with torch.no_grad():
        logits = merged(golden['input'])
    assert relative_l2(logits, golden['deploy']['logits']) < 1e-5


def test_random_images_where_there_is_no_data(folder):
    done = run_tool('reparam.py', 'config.py', 'done.pth', 'out.pth',
                    '--samples', 3, '--cfg-options',
                    'val_dataloader=None', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'compared on random images' in done.stdout.lower()
    assert 'compared on 3 random images' in done.stdout


def _write(folder, name, edit):
    content = read(folder / 'done.pth')
    edit(content)
    torch.save(content, folder / name)


def _unfit(folder):

    def edit(content):
        state = content['state_dict']
        state['head.classifier.conv1.weight'] = torch.zeros(3, 8, 1, 1)
        del state['backbone.stem.act.conv.weight']
        state['neck.weight'] = torch.zeros(1)
        state['neck.bias'] = torch.zeros(1)

    _write(folder, 'unfit.pth', edit)


def _broken(folder):

    # Finite weights whose fold is not.
    def edit(content):
        content['state_dict']['backbone.stem.conv.norm1.running_var'].fill_(
            -1)

    _write(folder, 'broken.pth', edit)


def _merged(folder):
    reparameterize(
        read_config(str(folder / 'config.py')), folder / 'done.pth',
        folder / 'merged.pth', samples=1)


REFUSALS = {
    'lambda below 1': (
        None, ['config.py', 'half.pth', 'out.pth'],
        r'half\.pth: cannot merge "backbone\.stem\.conv": its lambda is '
        r'0\.6666\d*, not 1'),
    'over the tolerance': (
        None, ['config.py', 'done.pth', 'out.pth', '--tol', '1e-12'],
        r'relative error of output 1 of call 1 of \S+ of sample \d+ is '
        r'[\d.e-]+, over the tolerance 1e-12'),
    'negative variance': (_broken, ['config.py', 'broken.pth', 'out.pth'],
                     r'holds a negative variance'),
    'does not fit': (
        _unfit, ['config.py', 'unfit.pth', 'out.pth'],
        r'unfit\.pth does not fit the config: head\.classifier\.conv1\.weight '
        r'has shape \(3, 8, 1, 1\) for \(10, 8, 1, 1\); '
        r'backbone\.stem\.act\.conv\.weight is missing; neck\.weight is '
        r'not in the model; and 1 more'),
    'out is the checkpoint': (
        None, ['config.py', 'done.pth', 'done.pth'],
        r'done\.pth: it is done\.pth, which this command reads'),
    'out is a link to it': (
        lambda folder: os.symlink('done.pth', folder / 'link.pth'),
        ['config.py', 'done.pth', 'link.pth'],
        r'link\.pth: it is done\.pth, which this command reads'),
    'out.py is the config': (
        None, ['config.py', 'done.pth', 'config.pth'],
        r'cannot write to config\.py: it is \S+config\.py, which this'),
    'no such folder': (
        None, ['config.py', 'done.pth', 'no/out.pth'],
        r'cannot write to no/out\.pth: the folder no does not exist'),
    'folder in the way': (
        lambda folder: (folder / 'out.pth').mkdir(),
        ['config.py', 'done.pth', 'out.pth'], 'it is a folder'),
    'read-only folder': (
        None, ['config.py', 'done.pth', '/proc/out.pth'],
        r'cannot write to /proc/out\.pth'),
    'not a checkpoint': (
        lambda folder: (folder / 'text.pth').write_text('hello'),
        ['config.py', 'text.pth', 'out.pth'], r'text\.pth'),
    'truncated': (
        lambda folder: (folder / 'cut.pth').write_bytes(
            (folder / 'done.pth').read_bytes()[:5000]),
        ['config.py', 'cut.pth', 'out.pth'], r'cut\.pth'),
    'no checkpoint there': (
        None, ['config.py', 'none.pth', 'out.pth'], r'none\.pth'),
    'no config there': (
        None, ['none.py', 'done.pth', 'out.pth'], r'no config at none\.py'),
    'another suffix': (
        None, ['config.py', 'done.pth', 'out.onnx'], r'must end in \.pth'),
    'no samples': (
        None, ['config.py', 'done.pth', 'out.pth', '--samples', '0'],
        'must be positive, got 0'),
    'merged already': (
        _merged, ['config.py', 'merged.pth', 'out.pth'],
        r'merged\.pth is in deploy form already'),
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


def test_refusal_is_the_exit_code_of_the_process(folder):
    done = run_tool('reparam.py', 'config.py', 'half.pth', 'out.pth',
                    cwd=folder)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert not (folder / 'out.pth').exists()


def test_killed_while_it_writes(folder):
    before = files(folder)
    # Writing is held up at its very end, when all bytes are on the disk.
    code = f'''
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ['reparam.py', 'config.py', 'done.pth', 'out.pth']
from mmvanilla.utils import files
files.os.replace = lambda *args: (print('writing', flush=True),
                                  time.sleep(100))
import runpy
runpy.run_path({str(ROOT / 'tools' / 'reparam.py')!r}, run_name='__main__')
'''
    process = subprocess.Popen([sys.executable, '-c', code],
                               cwd=folder,
                               stdout=subprocess.PIPE,
                               text=True)
    for line in process.stdout:
        if line.strip() == 'writing':
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = files(folder)
    assert 'out.pth' not in after and 'out.py' not in after
    assert all(after[name] == before[name] for name in before)


def test_nothing_to_merge(tmp_path):
    cfg = tiny_cfg(tmp_path)
    cfg.model = dict(
        type='ImageClassifier',
        data_preprocessor=cfg.model.data_preprocessor,
        backbone=dict(type='LeNet5', num_classes=10),
        head=dict(type='ClsHead'))
    torch.save(build_model(cfg).state_dict(), tmp_path / 'lenet.pth')
    with pytest.raises(UserError, match='no layer to convert'):
        reparameterize(cfg, tmp_path / 'lenet.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()
