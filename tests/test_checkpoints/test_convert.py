# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
from argparse import Namespace

import pytest
import torch
from golden import WIDTHS, load, random_authors_weights, relative_l2, same
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmpretrain import get_model

from mmvanilla.checkpoints import (
    convert,
    from_authors,
    read_checkpoint,
    to_authors,
)
from mmvanilla.utils.errors import UserError


@pytest.mark.parametrize('name', ['plain', 'act4_deep', 'ada_pool'])
@pytest.mark.parametrize('form', ['train', 'deploy'])
def test_there_and_back(tmp_path, name, form):
    golden = load(name)
    theirs = golden if form == 'train' else golden['deploy']
    theirs = theirs['state_dict']
    src, dst, back = (tmp_path / f'{n}.pth' for n in ('src', 'dst', 'back'))
    torch.save(
        dict(model_ema=theirs, epoch=299, args=Namespace(model='x')), src)

    said = convert(src, dst)
    n, classes = golden['kwargs']['act_num'], golden['kwargs']['num_classes']
    assert f'{form} form, n = {n}, {classes} classes' in said

    cfg = Config.fromfile(tmp_path / 'dst.py')
    assert cfg.load_from == str(dst)
    if name == 'ada_pool':
        # No tensor tells that, and convert said so.
        assert 'Correct arch in the config' in said
        cfg.model.backbone.arch.ada_pool = golden['kwargs']['ada_pool']
    model = get_model(cfg)
    load_checkpoint(model, cfg.load_from, strict=True)
    wanted = golden['deploy'] if form == 'deploy' else golden['eval'][1.0]
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, wanted['logits']) < 1e-5

    # Also after the model has had it.
    again = to_authors(model.state_dict())
    assert same({k: again[k] for k in theirs}, theirs)
    assert len(again) == len(theirs)
    convert(dst, back, to='authors', key='model_ema')
    assert same(torch.load(back)['model_ema'], theirs)
    # Its config loads it through vanillanet://.
    cfg = Config.fromfile(tmp_path / 'back.py')
    load_checkpoint(get_model(cfg), cfg.load_from, strict=True)


def test_ada_is_told_by_names(tmp_path):
    dims = [128 * d for d in WIDTHS['13-x1.5']]
    theirs = random_authors_weights(dims, deploy=True)
    for name, args, arch in [
        ('best', Namespace(model='vanillanet_13_x1_5_ada_pool'),
         '13-x1.5-ada'),
        ('best', Namespace(model='vanillanet_13_x1_5'), '13-x1.5'),
        ('vanillanet-13-x1.5_adamw', None, '13-x1.5'),
        ('best', None, None),
    ]:
        torch.save(dict(model=theirs, args=args), tmp_path / f'{name}.pth')
        said = convert(
            tmp_path / f'{name}.pth', tmp_path / 'out.pth', force=True)
        cfg = Config.fromfile(tmp_path / 'out.py')
        assert cfg.model.backbone.arch == (arch or '13-x1.5')
        assert ('are alike' in said) == (arch is None)


def test_key(tmp_path):
    theirs = load('plain')['state_dict']
    other = {k: v + 1 for k, v in theirs.items()}
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    both = dict(model=other, model_ema=theirs)
    for saved, key, wanted in [
        (both, None, theirs), (both, 'model', other), (theirs, None, theirs),
        (dict(model=theirs), None, theirs)
    ]:
        torch.save(saved, src)
        convert(src, dst, key=key, force=True)
        assert same(read_checkpoint(dst)['state_dict'], from_authors(wanted))
    with pytest.raises(UserError, match='holds no model_ema, but model'):
        convert(src, dst, key='model_ema', force=True)


@pytest.mark.parametrize('args, epoch, lam', [
    (dict(decay_epochs=100, decay_linear=True), 37, 0.37),
    (dict(decay_epochs=80, decay_linear=False), 20, 0.5 - 0.5**1.5),
    (dict(decay_epochs=80, decay_linear=False), 80, 1),
    (dict(decay_epochs=80), 120, 1), (dict(epochs=300), 20, 1),
    (dict(decay_epochs=80), 'best', None), (dict(decay_epochs=80), None, None),
])
def test_lambda_of_an_unfinished_training(tmp_path, args, epoch, lam):
    """The outputs are those of the authors' code at that lambda."""
    golden = load('plain')
    src, dst = tmp_path / 'checkpoint.pth', tmp_path / 'dst.pth'
    torch.save(dict(model=golden['state_dict'], epoch=epoch,
                    args=Namespace(**args)), src)
    if lam is None:
        with pytest.raises(UserError, match=f'tell lambda.* is {epoch!r}'):
            convert(src, dst)
        assert not dst.exists()
        # A published file is finished.
        src = src.rename(tmp_path / 'vanillanet_6.pth')
        assert 'unfinished: lambda' not in convert(src, dst)
        return
    said = convert(src, dst)
    assert ('unfinished: lambda is' in said) == (lam < 1)
    state_dict = read_checkpoint(dst)['state_dict']
    found = [float(v) for k, v in state_dict.items() if k.endswith('.lam')]
    assert found == pytest.approx([lam] * 6)
    if lam in golden['eval']:
        model = get_model(Config.fromfile(tmp_path / 'dst.py'))
        load_checkpoint(model, str(dst), strict=True)
        with torch.no_grad():
            logits = model(golden['input'])
        assert relative_l2(logits, golden['eval'][lam]['logits']) < 1e-5


def test_refusals_leave_no_file(tmp_path):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=theirs), src)
    for bad in (src, tmp_path / 'b.py', tmp_path, tmp_path / 'no' / 'b.pth'):
        with pytest.raises(UserError, match='cannot write to'):
            convert(src, bad, force=True)
    with pytest.raises(UserError, match='holds no weights'):
        convert(src, dst, to='authors')
    ours = from_authors(theirs)
    ours['head.classifier.act.lam'] = torch.tensor(0.25)
    torch.save(dict(state_dict=ours), tmp_path / 'ours.pth')
    with pytest.raises(UserError, match='act.lam is 0.25'):
        convert(tmp_path / 'ours.pth', dst, to='authors')
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'ours.pth']
    for existing in (dst, dst.with_suffix('.py')):  # without force
        existing.write_text('mine')
        with pytest.raises(UserError, match=f'cannot write to {existing}'):
            convert(src, dst)
        assert existing.read_text() == 'mine'
        existing.unlink()
