# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import shutil
from argparse import Namespace

import pytest
import torch
from golden import WIDTHS, load, random_authors_weights, same
from mmengine.config import Config

from mmvanilla.checkpoints import convert, from_authors, read_checkpoint
from mmvanilla.utils.errors import UserError


def different(state_dict: dict) -> dict:
    return {k: v + 1 for k, v in state_dict.items()}


def test_convert_tells_ada_by_names(tmp_path):
    dims = [128 * d for d in WIDTHS['13-x1.5']]
    theirs = random_authors_weights(dims, deploy=True)
    for name, args, arch in [
        ('vanillanet_13_x1_5', None, '13-x1.5'),
        ('vanillanet_13_x1_5_ada_pool', None, '13-x1.5-ada'),
        ('best', Namespace(model='vanillanet_13_x1_5_ada_pool'),
         '13-x1.5-ada'),
        ('best', Namespace(model='vanillanet_13_x1_5'), '13-x1.5'),
        ('vanillanet-13-x1.5_adamw', None, '13-x1.5'),
        ('best', None, None),
    ]:
        torch.save(dict(model=theirs, args=args), tmp_path / f'{name}.pth')
        said = convert(tmp_path / f'{name}.pth', tmp_path / 'out.pth')
        cfg = Config.fromfile(tmp_path / 'out.py')
        assert cfg.model.backbone.arch == (arch or '13-x1.5')
        assert ('are alike' in said) == (arch is None)


def test_convert_reads_the_key_that_it_is_told(tmp_path):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=different(theirs), model_ema=theirs), src)
    for key, wanted in [(None, theirs), ('model_ema', theirs),
                        ('model', different(theirs))]:
        convert(src, dst, key=key)
        state_dict = read_checkpoint(dst)['state_dict']
        assert same(state_dict, from_authors(wanted))
    torch.save(dict(model=theirs), src)
    with pytest.raises(UserError, match='holds no model_ema, but model'):
        convert(src, dst, key='model_ema')


def test_convert_refuses(tmp_path):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=theirs), src)
    before = src.read_bytes()
    for bad in (src, tmp_path / 'b.py', tmp_path, tmp_path / 'no' / 'b.pth'):
        with pytest.raises(UserError, match='cannot write to'):
            convert(src, bad)
    with pytest.raises(UserError, match='holds no state_dict'):
        convert(src, dst, to='authors')
    ours = from_authors(theirs)
    ours['head.classifier.act.lam'] = torch.tensor(0.25)
    torch.save(dict(state_dict=ours), tmp_path / 'ours.pth')
    with pytest.raises(UserError, match='act.lam is 0.25'):
        convert(tmp_path / 'ours.pth', dst, to='authors')
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'ours.pth']
    assert src.read_bytes() == before


def test_convert_leaves_no_file_when_the_disk_is_full(tmp_path, monkeypatch):
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=load('plain')['state_dict']), src)

    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(UserError, match=f'cannot write {dst}: No space left'):
        convert(src, dst)
    assert os.listdir(tmp_path) == ['a.pth']


def test_convert_replaces_its_own_files_alone(tmp_path):
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=load('plain')['state_dict']), src)
    convert(src, dst)
    convert(src, dst)
    for path in (dst, tmp_path / 'b.py'):
        own = path.read_bytes()
        path.write_text('mine')
        with pytest.raises(UserError, match=f'cannot write to {path}'):
            convert(src, dst)
        assert path.read_text() == 'mine'
        convert(src, dst, force=True)
        assert path.read_bytes() == own
    shutil.copy(src, dst)
    with pytest.raises(UserError, match='cannot write to'):
        convert(dst, src)
