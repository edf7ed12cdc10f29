# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from golden import build_classifier, load, one_sentence, same
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmpretrain.registry import MODELS
from tiny import assert_same_weights, tiny_cfg, train
from torch import nn

from mmvanilla.checkpoints import (
    convert,
    load_checkpoint,
    load_state_dict,
    load_weights,
    read_checkpoint,
    safe_reading,
)
from mmvanilla.utils.errors import UserError

FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
FORCE_NO = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def equal(a, b) -> bool:
    """Whether two contents are the same, classes included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(
            equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(
            map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(
            a.view(torch.uint8) if a.dtype.itemsize == 1 else a,
            b.view(torch.uint8) if b.dtype.itemsize == 1 else b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, HistoryBuffer):
        return type(b) is HistoryBuffer and equal(a.data, b.data)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('legacy', [False, True])
def test_what_torch_and_mmengine_save(tmp_path, legacy):
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Conv2d(3, 4, 3))
    shared = torch.arange(6.)
    saved = dict(
        state_dict=network.state_dict(),
        meta=dict(epoch=3, dataset_meta=dict(classes=('a', 'b')), dtype={
            torch.float16, 'a'}),
        tensors=[
            torch.arange(6).view(2, 3).T, torch.ones(2).bfloat16(),
            torch.ones(2, dtype=torch.complex64), torch.empty(0, 3),
            torch.rand(1).expand(3, 4), torch.tensor([0, float('-inf')]),
            shared[::2], shared[1:], torch.get_rng_state()
        ],
        parameter=nn.Parameter(torch.ones(2)),
        arrays=[np.arange(6).reshape(2, 3).T, np.zeros((0, 2), 'f4'),
                np.asfortranarray(np.ones((2, 3))), np.array(3)],
        scalars=[np.float64(0.5), np.bool_(True), np.float16(1)],
        random=np.random.get_state(),
        hub=dict(log_scalars=OrderedDict(
            loss=HistoryBuffer([1, 3.], [1, 1]), empty=HistoryBuffer())),
        scheduler=dict(milestones=Counter([1, 2, 2]), last=-1),
        plain=[None, True, 2**100, -1.5, 'ä', b'', b'a\xff', (),
               torch.Size([1]), slice(1, 2)],
        args=Namespace(model='vanillanet_6', lr=4.8e-3))
    torch.save(
        dict(saved, config=ConfigDict(a=dict(b=1)), path=Path('a/b')),
        tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / 'a.pth')
    assert str(read.pop('path')) == 'a/b'
    assert read.pop('config') == dict(a=dict(b=1))
    assert equal(saved, read)
    # Tensors that shared their storage still do.
    assert (read['tensors'][6].untyped_storage().data_ptr() ==
            read['tensors'][7].untyped_storage().data_ptr())
    assert read['state_dict']._metadata == saved['state_dict']._metadata
    # Saved again, it reads without mmvanilla.
    torch.save(read, tmp_path / 'b.pth')
    assert b'mmvanilla' not in (tmp_path / 'b.pth').read_bytes()
    assert equal(saved, torch.load(tmp_path / 'b.pth', weights_only=False))
    loss = read['hub']['log_scalars']['loss']
    loss.update(5.)
    assert (loss.mean(), loss.statistics('min'), loss.current()) == (3, 1, 5)
    np.random.set_state(read['random'])


def test_a_training_checkpoint(tmp_path):
    """Of a whole run: history, optimizer, schedule, random states."""
    train(tiny_cfg(tmp_path, epochs=1, decay_epochs=1))
    path = tmp_path / 'epoch_1.pth'
    wanted = torch.load(path, weights_only=False)
    wanted['extra'] = dict(numpy=np.random.get_state(), loss=np.float32(1))
    torch.save(wanted, path)
    read = read_checkpoint(path)
    assert isinstance(
        read['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert equal(wanted, read)
    with safe_reading():
        assert equal(wanted, CheckpointLoader.load_checkpoint(str(path)))


def test_refusals_say_what_and_how_to_go_on(tmp_path):
    path = tmp_path / 'a.pth'
    for value, name in [(print, 'print'), (os.getcwd, 'getcwd'),
                        (np.array([None]), r"numpy.dtype\('O8?'\)"),
                        (np.random.default_rng(0), 'numpy')]:
        torch.save(dict(state_dict=nn.Linear(1, 1).state_dict(), a=value),
                   path)
        with pytest.raises(UserError, match=f'asks for .*{name}') as e:
            read_checkpoint(path)
        text = one_sentence(e)
        assert text.startswith(str(path))
        call = text[text.index('torch.save('):text.index(' and give NEW')]
        exec(call, dict(torch=torch, PATH=path, NEW=tmp_path / 'new.pth'))
        assert load_weights(nn.Linear(1, 1), tmp_path / 'new.pth') == {}


def test_unreadable_files(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(model=load('plain')['state_dict']), whole)
    cut, text, empty, tensor, script, plain, five = (
        tmp_path / f'{x}.pth' for x in ('cut', 'text', 'empty', 'tensor',
                                        'script', 'pickle', 'five'))
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    text.write_text('hello')
    empty.touch()
    torch.save(torch.ones(1), tensor)
    torch.jit.save(torch.jit.script(nn.ReLU()), script)
    plain.write_bytes(pickle.dumps(dict(a=1)))
    torch.save(dict(a=1), five, pickle_protocol=5)
    for path, found in [
        *[(path, 'is not a checkpoint that torch reads safely, or is cut')
          for path in (cut, text, empty, script, plain, five)],
        (tensor, 'holds a Tensor, not a dict'),
        (tmp_path, 'there is no such file'),
        (tmp_path / 'none.pth', 'there is no such file')
    ]:
        for read in (read_checkpoint,
                     lambda path: convert(path, tmp_path / 'out.pth')):
            with pytest.raises(UserError) as e:
                read(path)
            assert str(path) in one_sentence(e) and found in str(e.value)
    assert not (tmp_path / 'out.pth').exists()


# ------------------------------------------------------------ safe_reading


def state() -> tuple:
    return (set(torch.serialization.get_safe_globals()), dict(os.environ),
            dict(vars(mmengine_checkpoint)))


@pytest.mark.parametrize('user', [{}, {FORCE: '0'}, {FORCE_NO: '1'}])
def test_safe_reading_is_undone(tmp_path, monkeypatch, user):
    for key, value in user.items():
        monkeypatch.setenv(key, value)
    torch.save(dict(a=Path('x'), b=print), tmp_path / 'a.pth')
    # An entry of someone else's under a name of ours.
    with torch.serialization.safe_globals([getattr]):
        before = state()
        for error in (None, ValueError('x')):
            try:
                with safe_reading(), safe_reading():
                    read_checkpoint_of_arrays(tmp_path)
                    with pytest.raises(pickle.UnpicklingError):
                        torch.load(tmp_path / 'a.pth', weights_only=False)
                    assert getattr not in state()[0]
                    # OneDL's mmengine would add it again.
                    assert mmengine_checkpoint.get_torch_safe_globals() == []
                    if error:
                        raise error
            except ValueError as e:
                assert e is error
            assert state() == before
        read_checkpoint_of_arrays(tmp_path)
        assert state() == before
    assert torch.load(tmp_path / 'a.pth', weights_only=False)['b'] is print


def read_checkpoint_of_arrays(folder) -> None:
    torch.save(dict(a=np.ones(2)), folder / 'arrays.pth')
    assert read_checkpoint(folder / 'arrays.pth')['a'].sum() == 2


def test_errors_of_the_hosts_become_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'cut.pth').write_bytes(b'PK\3\4' + bytes(100))
    for name, found in [(tmp_path / 'none.pth', 'none.pth can not be found'),
                        (tmp_path / 'cut.pth', 'is not a checkpoint'),
                        ('http://127.0.0.1:9/a.pth', 'cannot be downloaded')]:
        with pytest.raises(UserError, match=f'^a checkpoint .*{found}') as e:
            with safe_reading():
                CheckpointLoader.load_checkpoint(str(name))
        one_sentence(e)
    # Errors of others, and users' errors, pass.
    for error in (ValueError('a\nb'), RuntimeError('weights'),
                  FileNotFoundError('no x'), UserError('weights_only')):
        with pytest.raises(type(error)) as e:
            with safe_reading():
                raise error
        assert e.value is error


# ---------------------------------------------- what mmvanilla leaves alone


class Own:
    """An object of another project."""

    def __eq__(self, other):
        return type(other) is Own


def test_mmengine_s_loaders_are_its_own():
    loaders = dict(CheckpointLoader._schemes)
    assert loaders.pop('vanillanet://').__module__.startswith('mmvanilla.')
    assert len(loaders) >= 11
    assert {x.__module__ for x in loaders.values()} == {
        'mmengine.runner.checkpoint'}


def test_files_of_other_networks_load_as_without_mmvanilla(tmp_path):
    weight = torch.rand(3)
    path = tmp_path / 'a.pth'
    for content in [
        dict(model=dict(weight=weight), epoch=1),
        dict(model=dict(model=weight)),
        dict(state_dict=dict(attn_mask=torch.tensor([0, float('-inf')]))),
        dict(state_dict=dict(lam=weight * 7, running_var=-weight)),
        dict(state_dict=dict(weight=weight.to(torch.complex64))),
        dict(state_dict=dict(weight=weight.to(torch.float8_e5m2))),
        dict(state_dict=dict(weight=weight), meta=dict(names={'a'})),
        dict(state_dict=dict(weight=weight), meta=dict(path=Path('a'))),
        dict(state_dict=dict(weight=weight), meta=dict(config='x=1', o=Own())),
        dict(state_dict={}, weight=[1]),
        [weight],
    ]:
        torch.save(content, path)
        try:
            loaded = CheckpointLoader.load_checkpoint(str(path))
        except pickle.UnpicklingError:
            # The original mmengine on this torch, with an object in meta.
            assert mmengine.__version__ == '0.10.7'
            assert {type(Path()), Own} & {
                type(x) for x in content['meta'].values()}
            continue
        assert equal(content, loaded)
    torch.save(dict(weight=weight), path)
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='meta')
    assert loaded['weight'].is_meta


# ------------------------------------------------------ loading into models


@pytest.fixture
def model():
    return build_classifier(load('plain'))


def test_load_weights(tmp_path, model):
    path = tmp_path / 'a.pth'
    wanted = model.state_dict()
    without = {k: v for k, v in wanted.items()
               if not k.endswith(('.lam', '.num_batches_tracked'))}
    wrapped = {f'module.{k}': v for k, v in wanted.items()}
    for state_dict in (wanted, without, wrapped):
        for saved, meta in [(dict(state_dict=state_dict, meta=dict(a=1)),
                             dict(a=1)), (dict(state_dict), {})]:
            torch.save(saved, path)
            other = build_classifier(load('plain'))
            for key, value in other.state_dict().items():
                value.fill_(1 if key.endswith('.lam') else 0)
            assert load_weights(other, path) == meta
            assert all(
                torch.equal(v, wanted[k])
                for k, v in other.state_dict().items() if k in without)


def test_a_child_called_module():
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    wanted = {k: torch.rand_like(v) for k, v in model.state_dict().items()}
    load_state_dict(model, wanted, 'x')
    assert_same_weights(model.state_dict(), wanted)
    with pytest.raises(UserError, match='module.bias is missing'):
        load_state_dict(model, {k[7:]: v for k, v in wanted.items()}, 'x')
    # A prefix that not every key has is none.
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2)))
    with pytest.raises(UserError, match='module.b is not in the model'):
        load_state_dict(
            model, {**model.state_dict(), 'module.b': torch.ones(1)}, 'x')


def test_misfits_are_named(tmp_path, model):
    state_dict = model.state_dict()
    path = tmp_path / 'a.pth'
    del state_dict['backbone.stem.act.conv.weight']
    state_dict['neck.weight'] = torch.ones(1)
    torch.save(state_dict, path)
    with pytest.raises(UserError) as e:
        load_weights(model, path)
    assert one_sentence(e) == (
        f'{path} does not fit the config: backbone.stem.act.conv.weight is '
        'missing, neck.weight is not in the model')
    # Another shape, and a later form, which an earlier one cannot take.
    state_dict = model.state_dict()
    state_dict['head.classifier.conv1.weight'] = torch.ones(3, 8, 1, 1)
    deployed = build_classifier(load('plain'), deploy=True).state_dict()
    for saved, found in [
        (state_dict, r'head.classifier.conv1.weight.*\[3, 8, 1, 1\]'),
        (deployed, ''), (dict(state_dict=1), 'holds no weights'),
        (dict(state_dict={}), 'holds no weights'),
        (dict(state_dict={1: torch.ones(1)}), 'holds no weights'),
        (dict(state_dict={**model.state_dict(), 'head.classifier.conv1.weight':
                          1}), 'head.classifier.conv1.weight')
    ]:
        torch.save(saved, path)
        with pytest.raises(UserError, match=f'{path} .*{found}') as e:
            load_weights(model, path)
        one_sentence(e)


def test_an_official_file_as_a_path_names_the_scheme(tmp_path, model):
    path = tmp_path / 'vanillanet_6.pth'
    theirs = load('plain')['state_dict']
    for saved in (dict(model=theirs, epoch=299), theirs,
                  dict(state_dict={f'backbone.{k}': v
                                   for k, v in theirs.items()})):
        torch.save(saved, path)
        with pytest.raises(UserError, match=f'as vanillanet://{path}$') as e:
            load_weights(model, path)
        one_sentence(e)


def test_names_of_mmengine_s_zoos(tmp_path, monkeypatch):
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    torch.save(resnet, tmp_path / 'resnet.pth')
    mmengine.dump(dict(ours='resnet.pth'), tmp_path / 'open_mmlab.json')
    assert same(load_checkpoint('openmmlab://ours'), resnet)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for name in ('openmmlab://none', 'torchvision://none', 'pavi://a/b.pth',
                 's3://a/b.pth', 'http://127.0.0.1:9/b.pth'):
        with pytest.raises(UserError, match=name) as e:
            load_checkpoint(name)
        one_sentence(e)
