# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from golden import load, one_sentence
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from mmvanilla.checkpoints import convert, read_checkpoint
from mmvanilla.utils.errors import UserError

FORMATS = [
    dict(), dict(pickle_protocol=4),
    dict(_use_new_zipfile_serialization=False)
]


class RunsACommand:
    """A pickle of it runs a shell command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command, )


@pytest.mark.parametrize('kwargs', FORMATS, ids=['zip', 'protocol 4',
                                                 'legacy'])
def test_read_what_torch_and_mmengine_save(tmp_path, kwargs):
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Conv2d(3, 4, 3))
    shared = torch.arange(6.)
    saved = dict(
        state_dict=network.state_dict(),
        meta=dict(epoch=3, dataset_meta=dict(classes=('a', 'b'))),
        tensors=[
            torch.arange(6).view(2, 3).T, torch.ones(2).bfloat16(),
            torch.ones(2, dtype=torch.bool), torch.empty(0, 3),
            torch.rand(1).expand(3, 4), torch.tensor(7, dtype=torch.uint8),
            shared[::2], shared[1:], torch.get_rng_state()
        ],
        parameter=nn.Parameter(torch.ones(2)),
        arrays=[np.arange(6).reshape(2, 3).T, np.zeros((0, 2), 'f4'),
                np.float64(0.5), np.bool_(True), np.array(3)],
        random=np.random.get_state(),
        hub=dict(log_scalars=OrderedDict(loss=HistoryBuffer([1, 3.], [1, 1]))),
        scheduler=dict(milestones=Counter([1, 2, 2]), last=-1),
        plain=[None, True, 2**100, -1.5, 'ä', b'', b'ab', (), torch.Size([1])],
        config=ConfigDict(a=dict(b=1)),
        default=defaultdict(list, a=[1]))
    torch.save(saved, tmp_path / 'a.pth', **kwargs)
    read = read_checkpoint(tmp_path / 'a.pth')

    assert list(read) == list(saved)
    for a, b in zip(
            [*saved['state_dict'].values(), *saved['tensors'],
             saved['parameter']],
            [*read['state_dict'].values(), *read['tensors'],
             read['parameter']]):
        assert a.dtype == b.dtype and torch.equal(a, b)
        assert a.stride() == b.stride()
    # Tensors that shared their storage still do.
    assert (read['tensors'][6].untyped_storage().data_ptr() ==
            read['tensors'][7].untyped_storage().data_ptr())
    assert read['state_dict']._metadata == saved['state_dict']._metadata
    network.load_state_dict(read['state_dict'], strict=True)
    for a, b in zip([*saved['arrays'], saved['random'][1]],
                    [*read['arrays'], read['random'][1]]):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.array_equal(a, b)
    loss = read['hub']['log_scalars']['loss']
    assert (loss.mean(), loss.min(), loss.current()) == (2, 1, 3)
    for key in ('meta', 'scheduler', 'plain', 'config', 'default'):
        assert read[key] == saved[key]


def test_read_what_the_authors_saved(tmp_path):
    args = Namespace(model='vanillanet_6', lr=4.8e-3, output_dir='out')
    torch.save(
        dict(model={'a': torch.ones(1)}, epoch=299, scaler=dict(scale=2.),
             args=args), tmp_path / 'a.pth')
    assert read_checkpoint(str(tmp_path / 'a.pth'))['args'] == args


@pytest.mark.parametrize('save', [
    lambda obj, f: torch.save(dict(model={}, args=obj), f),
    lambda obj, f: f.write(pickle.dumps(obj, protocol=2)),
    lambda obj, f: f.write(pickle.dumps(obj, protocol=4)),
], ids=['torch', 'pickle2', 'pickle4'])
def test_malicious_pickle_does_not_run(tmp_path, save):
    path, proof = tmp_path / 'evil.pth', tmp_path / 'proof'
    with path.open('wb') as f:
        save(RunsACommand(f'touch {proof}'), f)
    with pytest.raises(UserError) as e:
        read_checkpoint(path)
    assert str(path) in one_sentence(e)
    assert not proof.exists()


def test_malicious_pickle_is_named(tmp_path):
    torch.save(dict(a=RunsACommand('true')), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='refused: it asks for .*system'):
        read_checkpoint(tmp_path / 'a.pth')


def test_unreadable_files(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(model=load('plain')['state_dict']), whole)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    text = tmp_path / 'text.pth'
    text.write_text('hello')
    empty = tmp_path / 'empty.pth'
    empty.touch()
    tensor = tmp_path / 'tensor.pth'
    torch.save(torch.ones(1), tensor)
    script = tmp_path / 'script.pth'
    torch.jit.save(torch.jit.script(nn.ReLU()), script)
    for path, found in [(cut, 'is not a checkpoint, or is cut short'),
                        (text, 'is not a checkpoint, or is cut short'),
                        (empty, 'is not a checkpoint, or is cut short'),
                        (tensor, 'holds a Tensor, not a dict'),
                        (script, 'holds a TorchScript module'),
                        (tmp_path, 'there is no such file'),
                        (tmp_path / 'none.pth', 'there is no such file')]:
        for read in (read_checkpoint,
                     lambda path: convert(path, tmp_path / 'out.pth')):
            with pytest.raises(UserError) as e:
                read(path)
            assert str(path) in one_sentence(e) and found in str(e.value)
    assert not (tmp_path / 'out.pth').exists()
