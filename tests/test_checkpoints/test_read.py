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
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from tiny import assert_same_weights, tiny_cfg, train
from torch import nn

from mmvanilla.checkpoints import (
    load_checkpoint,
    load_state_dict,
    load_weights,
    read_checkpoint,
    safe_reading,
)
from mmvanilla.checkpoints.read import UNREADABLE
from mmvanilla.engine.runs import find_checkpoint
from mmvanilla.utils.errors import UserError


def equal(a, b) -> bool:
    """Whether two contents are the same, classes included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(
            equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, HistoryBuffer):
        return equal(a.data, b.data)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and (
            a.tolist() == b.tolist())
    return a == b


@pytest.mark.parametrize('legacy', [False, True])
def test_what_torch_and_mmengine_save(tmp_path, legacy):
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Conv2d(3, 4, 3))
    shared = torch.arange(6.)
    saved = dict(
        state_dict=network.state_dict(),
        meta=dict(classes=('a', 'b'), dtype={torch.float16, 'a'}),
        tensors=[
            shared[::2], shared[1:], torch.arange(6).view(2, 3).T,
            torch.ones(2).bfloat16(), torch.ones(2, dtype=torch.complex64),
            torch.empty(0, 3), torch.rand(1).expand(3, 4),
            nn.Parameter(torch.ones(2))
        ],
        arrays=[np.arange(6).reshape(2, 3).T, np.zeros((0, 2), 'f4'),
                np.asfortranarray(np.ones((2, 3))), np.array(3)],
        scalars=[np.float64(0.5), np.bool_(True), np.float16(1)],
        random=np.random.get_state(),
        history=OrderedDict(
            loss=HistoryBuffer([1, 3.], [1, 1]), empty=HistoryBuffer()),
        milestones=Counter([1, 2, 2]),
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
    assert read['tensors'][0].data_ptr() + 4 == read['tensors'][1].data_ptr()
    assert read['state_dict']._metadata == saved['state_dict']._metadata
    # Saved again, it reads without mmvanilla.
    torch.save(read, tmp_path / 'b.pth')
    assert b'mmvanilla' not in (tmp_path / 'b.pth').read_bytes()
    assert equal(saved, torch.load(tmp_path / 'b.pth', weights_only=False))
    loss = read['history']['loss']
    loss.update(5.)
    assert (loss.mean(), loss.statistics('min'), loss.current()) == (3, 1, 5)


def test_a_training_checkpoint(tmp_path):
    """Of a whole run: history, optimizer, schedule, random states."""
    train(tiny_cfg(tmp_path, epochs=1, decay_epochs=1))
    path = tmp_path / 'epoch_1.pth'
    wanted = torch.load(path, weights_only=False)
    assert 'train/loss' in wanted['message_hub']['log_scalars']
    assert equal(wanted, read_checkpoint(path))
    with safe_reading():
        assert equal(wanted, CheckpointLoader.load_checkpoint(str(path)))


def test_refusals_say_what_and_how_to_go_on(tmp_path):
    path = tmp_path / 'a.pth'
    for value, name in [(print, 'print'),
                        (np.array([None]), r"numpy.dtype\('O8?'\)")]:
        torch.save(
            dict(state_dict=nn.Linear(1, 1).state_dict(), a=value), path)
        with pytest.raises(UserError, match=f'asks for .*{name}') as e:
            read_checkpoint(path)
        text = one_sentence(e)
        assert text.startswith(str(path))
        call = text[text.index('torch.save('):text.index(' and give NEW')]
        exec(call, dict(torch=torch, PATH=path, NEW=tmp_path / 'new.pth'))
        assert load_weights(nn.Linear(1, 1), tmp_path / 'new.pth') == {}


def test_unreadable_files(tmp_path):
    path = tmp_path / 'a.pth'
    for write, found in [
        (lambda: None, 'there is no such file'),
        (path.touch, UNREADABLE),
        (lambda: path.write_text('hello'), UNREADABLE),
        (lambda: path.write_bytes(pickle.dumps(dict(a=1))), UNREADABLE),
        (lambda: torch.save({}, path, pickle_protocol=5), UNREADABLE),
        (lambda: torch.jit.script(nn.ReLU()).save(path), UNREADABLE),
        (lambda: torch.save(torch.ones(1), path), 'holds a Tensor, not a dict')
    ]:
        write()
        with pytest.raises(UserError) as e:
            read_checkpoint(path)
        assert str(path) in one_sentence(e) and found in str(e.value)


def test_a_damaged_byte_is_refused(tmp_path):
    """In the weights, where torch does not look; so --resume passes it."""
    older, newer = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    weights = dict(weight=torch.full((500, ), 1 / 3))
    for path in (older, newer):
        torch.save(dict(
            state_dict=weights, optimizer={}, meta=dict(epoch=1, iter=1),
            message_hub=MessageHub('a').state_dict()), path)
    content = bytearray(newer.read_bytes())
    content[content.index(weights['weight'].numpy().tobytes()) + 1000] ^= 1
    newer.write_bytes(content)
    assert not same(torch.load(newer)['state_dict'], weights)  # no error
    with pytest.raises(UserError, match=f'{newer} .* or damaged$') as e:
        load_checkpoint(newer)
    assert find_checkpoint(tmp_path) == (str(older), [one_sentence(e)])
    # Files that were saved without checksums have none to compare.
    torch.serialization.set_crc32_options(False)
    torch.save(weights, newer)
    torch.serialization.set_crc32_options(True)
    assert same(load_checkpoint(newer), weights)


def state() -> tuple:
    return (set(torch.serialization.get_safe_globals()), dict(os.environ),
            dict(vars(mmengine_checkpoint)))


def test_safe_reading_is_undone(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(a=Path('x'), b=print), tmp_path / 'a.pth')
    torch.save(dict(a=np.ones(2)), tmp_path / 'arrays.pth')
    # An entry of someone else's under a name of ours.
    with torch.serialization.safe_globals([getattr]):
        before = state()
        with pytest.raises(ValueError), safe_reading(), safe_reading():
            inside = state()
            assert read_checkpoint(tmp_path / 'arrays.pth')['a'][1] == 1
            assert state() == inside
            with pytest.raises(pickle.UnpicklingError):
                torch.load(tmp_path / 'a.pth', weights_only=False)
            assert getattr not in inside[0]
            # OneDL's mmengine would add it again.
            assert mmengine_checkpoint.get_torch_safe_globals() == []
            raise ValueError
        assert state() == before
        read_checkpoint(tmp_path / 'arrays.pth')
        assert state() == before
    assert torch.load(tmp_path / 'a.pth', weights_only=False)['b'] is print


def test_errors_of_the_hosts_become_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'a.pth').write_bytes(b'PK\3\4' + bytes(100))
    for name, found in [(tmp_path / 'none.pth', 'none.pth can not be found'),
                        (tmp_path / 'a.pth', 'is not a checkpoint'),
                        ('http://127.0.0.1:9/a.pth', 'cannot be downloaded')]:
        with pytest.raises(UserError, match=f'^a checkpoint .*{found}'
                           ), safe_reading():
            CheckpointLoader.load_checkpoint(str(name))
    # Errors of others, and users' errors, pass.
    for error in (RuntimeError('x'), FileNotFoundError('x'), UserError('x')):
        with pytest.raises(type(error), match='^x$'), safe_reading():
            raise error


def test_mmengine_s_loaders_are_its_own(tmp_path):
    loaders = dict(CheckpointLoader._schemes)
    assert loaders.pop('vanillanet://').__module__.startswith('mmvanilla.')
    assert len(loaders) >= 11
    assert {x.__module__ for x in loaders.values()} == {
        'mmengine.runner.checkpoint'}
    # Files of other networks load as without mmvanilla.
    weight = torch.rand(3)
    path = tmp_path / 'a.pth'
    for content in [
        dict(model=dict(weight=weight), epoch=1),
        dict(state_dict=dict(lam=weight * 7, running_var=-weight)),
        dict(state_dict=dict(weight=weight), meta=dict(config='x=1', o={'a'})),
        dict(state_dict=dict(weight=weight), meta=dict(o=Path('a'))),
        [weight],
    ]:
        torch.save(content, path)
        try:
            loaded = CheckpointLoader.load_checkpoint(str(path))
        except pickle.UnpicklingError:
            # The original mmengine on this torch, with an object in meta.
            assert mmengine.__version__ == '0.10.7' and 'o' in content['meta']
        else:
            assert equal(content, loaded)


@pytest.fixture
def model():
    return build_classifier(load('plain'))


def test_load_weights(tmp_path, model):
    path = tmp_path / 'a.pth'
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    without = {k: v for k, v in wanted.items()
               if not k.endswith(('.lam', '.num_batches_tracked'))}
    wrapped = {f'module.{k}': v for k, v in wanted.items()}
    for saved, meta in [(wanted, {}), (without, {}), (
            dict(state_dict=wrapped, meta=dict(a=1)), dict(a=1))]:
        torch.save(saved, path)
        for key, value in model.state_dict().items():
            value.fill_(1 if key.endswith('.lam') else 0)
        assert load_weights(model, path) == meta
        found = model.state_dict()
        assert_same_weights({k: found[k] for k in without}, without)


def test_a_child_called_module():
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    wanted = {k: torch.rand_like(v) for k, v in model.state_dict().items()}
    load_state_dict(model, wanted, 'x')
    assert_same_weights(model.state_dict(), wanted)
    with pytest.raises(UserError, match='module.weight is missing'):
        load_state_dict(model, {k[7:]: v for k, v in wanted.items()}, 'x')


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
    state_dict, key = model.state_dict(), 'head.classifier.conv1.weight'
    # A later form, which an earlier one cannot take.
    deployed = build_classifier(load('plain'), deploy=True).state_dict()
    for saved, found in [
        ({**state_dict, key: torch.ones(3, 8, 1, 1)}, rf'{key}.*\[3, 8, 1, 1'),
        ({**state_dict, key: 1}, key), (deployed, ''),
        (dict(state_dict={}), 'holds no weights'),
        (dict(state_dict={1: torch.ones(1)}), 'holds no weights'),
    ]:
        torch.save(saved, path)
        with pytest.raises(UserError, match=f'{path} .*{found}') as e:
            load_weights(model, path)
        one_sentence(e)


def test_an_official_file_as_a_path_names_the_scheme(tmp_path, model):
    path = tmp_path / 'vanillanet_6.pth'
    theirs = load('plain')['state_dict']
    detector = {f'backbone.{k}': v for k, v in theirs.items()}
    for saved in (dict(model=theirs), theirs, dict(state_dict=detector)):
        torch.save(saved, path)
        with pytest.raises(UserError, match=f'as vanillanet://{path}$'):
            load_weights(model, path)


def test_names_of_mmengine_s_zoos(tmp_path, monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    wanted = nn.Linear(1, 1).state_dict()
    torch.save(wanted, tmp_path / 'a.pth')
    mmengine.dump(dict(ours='a.pth'), tmp_path / 'open_mmlab.json')
    assert same(load_checkpoint('openmmlab://ours'), wanted)
    for name in ('openmmlab://none', 's3://a/b', 'http://127.0.0.1:9/b'):
        with pytest.raises(UserError, match=name) as e:
            load_checkpoint(name)
        one_sentence(e)


def detector(classes: int, width: int = 4) -> nn.Module:
    return nn.ModuleDict(dict(
        backbone=nn.Conv2d(3, 8, 1), neck=nn.Conv2d(8, width, 1),
        roi_head=nn.ModuleDict(dict(
            bbox_head=nn.Linear(width, 4 * classes),
            mask_head=nn.Conv2d(width, classes, 1)))))


def test_heads_for_other_classes_are_named():
    """When training starts from the weights, and no other misfits."""
    source, model = detector(3).state_dict(), detector(5)
    text = load_state_dict(model, source, 'x', start=True)
    assert 'roi_head.bbox_head.weight has the shape [12, 4] inst' in text
    assert 'roi_head.mask_head.weight has the shape [3, 4, 1, 1]' in text
    for key, value in model.state_dict().items():
        assert 'head' in key or torch.equal(value, source[key])
    wider = detector(3)
    wider.roi_head.mask_head = nn.Conv2d(6, 3, 1)
    for model, start, found in [
        (detector(5), False, 'bbox_head'), (detector(5, 6), True, 'neck'),
        (wider, True, 'mask_head')]:
        with pytest.raises(UserError, match='x does not fit') as e:
            load_state_dict(model, source, 'x', start)
        assert found in one_sentence(e)
