# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Files that attack who reads them: ``python hostile.py FOLDER COUNT``."""
import io
import json
import pickle
import pickletools
import random
import re
import struct
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmvanilla.checkpoints import load_checkpoint, safe_reading
from mmvanilla.checkpoints.constructors import NAMES
from mmvanilla.utils.errors import UserError

P = pickle


def text(value: str) -> bytes:
    return P.BINUNICODE + struct.pack('<I', len(value)) + value.encode()


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return P.LONG1 + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    return P.GLOBAL + f'{module}\n{attribute}\n'.encode()


def tuple_(*items: bytes) -> bytes:
    return P.MARK + b''.join(items) + P.TUPLE


def dict_(**items: bytes) -> bytes:
    pairs = b''.join(text(k) + v for k, v in items.items())
    return P.EMPTY_DICT + P.MARK + pairs + P.SETITEMS


def call(module: str, attribute: str, *args: bytes) -> bytes:
    return name(module, attribute) + tuple_(*args) + P.REDUCE


HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer')


def build(owner: bytes, **state: bytes) -> bytes:
    return owner + P.EMPTY_TUPLE + P.NEWOBJ + dict_(**state) + P.BUILD


def attribute(owner: bytes, attr: str) -> bytes:
    return call('builtins', 'getattr', owner, text(attr))


def data(value: bytes) -> bytes:
    return call('_codecs', 'encode', text(value.decode('latin1')),
                text('latin1'))


def checkpoint(value: bytes) -> bytes:
    """A pickle of a checkpoint that is right but for one entry."""
    good = dict(state_dict=dict_(weight=tensor()), extra=value)
    return b'\x80\x02' + dict_(**good) + P.STOP


def tensor(numel=4, offset=0, size=(2, 2), stride=(2, 1)) -> bytes:
    storage = tuple_(text('storage'), name('torch', 'FloatStorage'), text('0'),
                     text('cpu'), integer(numel)) + P.BINPERSID
    return call('torch._utils', '_rebuild_tensor_v2', storage,
                integer(offset), tuple_(*map(integer, size)),
                tuple_(*map(integer, stride)), P.NEWFALSE,
                call('collections', 'OrderedDict'))


def dtype(kind: str) -> bytes:
    state = tuple_(integer(3), text('<'), P.NONE, P.NONE, P.NONE,
                   integer(-1), integer(-1), integer(0))
    return call('numpy', 'dtype', text(kind), P.NEWFALSE,
                P.NEWTRUE) + state + P.BUILD


def array(kind='f8', shape=(1, )) -> bytes:
    return call('numpy.core.multiarray', '_reconstruct',
                name('numpy', 'ndarray'), tuple_(integer(0)),
                data(b'b')) + tuple_(
                    integer(1), tuple_(*map(integer, shape)), dtype(kind),
                    P.NEWFALSE, data(b'A' * 8)) + P.BUILD


def write(path: Path, pickled: bytes, records=None, compression=0) -> None:
    """Write a file as torch.save does."""
    records = records or {'data/0': bytes(16), 'data/1': bytes(16)}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/byteorder', b'little')
        for key, value in records.items():
            archive.writestr(f'a/{key}', value)
        archive.writestr('a/version', b'3\n')


def payloads(canary: Path) -> dict[str, bytes]:
    """Calls that create the file ``canary`` where they are executed."""
    shell = text(f'touch {canary}')
    return {
        'os.system': call('os', 'system', shell),
        'eval': call('builtins', 'eval', text(f'open({str(canary)!r}, "w")')),
        'stack_global': text('os') + text('system') + P.STACK_GLOBAL +
        tuple_(shell) + P.REDUCE,
        'newobj': name('subprocess', 'Popen') + tuple_(
            P.EMPTY_LIST + text('touch') + P.APPEND + text(str(canary)) +
            P.APPEND) + P.NEWOBJ,
        'globals': attribute(attribute(HISTORY, 'update'), '__globals__'),
        'real getattr': with_real_getattr(canary),
        'setstate': build(name('argparse', 'Namespace'),
                          __class__=name('os', 'system')),
        'default_factory': call('collections', 'defaultdict',
                                name('os', 'system')),
    }


def with_real_getattr(canary: Path) -> bytes:
    """Make ``eval`` what ``torch._utils`` calls ``torch.nn.Parameter``."""
    run = attribute(
        attribute(name('builtins', 'getattr'), '__self__'), 'eval')
    names = attribute(
        name('torch._utils', '_rebuild_parameter'), '__globals__')
    torch_ = build(HISTORY, nn=build(HISTORY, Parameter=run))
    return tuple_(
        names + text('torch') + torch_ + P.SETITEM,
        call('torch._utils', '_rebuild_parameter',
             text(f'open({str(canary)!r}, "w").close()'), P.EMPTY_DICT,
             P.NONE))


def tricks(canary: Path) -> dict[str, bytes]:
    """Pickles by name, each of which a reader must refuse."""
    history = dict(_count_history=array(), max_length=integer(1))
    found = {
        'ndarray pointer': call('numpy', 'ndarray', P.EMPTY_TUPLE, text('O'),
                                data(b'A' * 8)),
        'object array': array('O'),
        'short array': array(shape=(2, )),
        'long array': array(shape=(1 << 60, 1 << 60)),
        'negative shape': array(shape=(-1, -1)),
        'number of another size': call('numpy.core.multiarray', 'scalar',
                                       dtype('f8'), data(b'A')),
        'array of a class': call('numpy.core.multiarray', '_reconstruct',
                                 name('collections', 'OrderedDict'),
                                 tuple_(integer(0)), data(b'b')),
        'array state of a dtype': dtype('f8') + array() + P.BUILD,
        'another method': attribute(HISTORY, 'update'),
        'history of lists': build(
            HISTORY, _log_history=P.EMPTY_LIST, **history),
        'history of a matrix': build(
            HISTORY, _log_history=array(shape=(1, 1)), **history),
        'storage too long': tensor(1 << 40, size=(1 << 40, ), stride=(1, )),
        'size beyond': tensor(size=(2, 3)),
        'offset beyond': tensor(offset=1),
        'negative offset': tensor(offset=-1),
        'overlap': tensor(size=(3, 3), stride=(1, 1)),
        **payloads(canary),
    }
    return {key: checkpoint(value) for key, value in found.items()}


def oddities() -> dict[str, bytes]:
    """Pickles by name that no network needs, but that do no harm."""
    found = {
        'class': HISTORY,
        'deep key': P.EMPTY_DICT + P.EMPTY_TUPLE + P.TUPLE1 * 50000 + P.NONE +
        P.SETITEM,
        'deep lists': P.EMPTY_LIST * 100000 + P.APPEND * 99999,
        'list in itself': P.EMPTY_LIST + P.BINPUT + b'\1' + P.BINGET +
        b'\1' + P.APPEND,
    }
    return {key: checkpoint(value) for key, value in found.items()}


def broken_files() -> dict[str, bytes]:
    """Files by name that are wrong as archives, not as pickles."""

    def zipped(records=None, compression=0) -> bytes:
        buffer = io.BytesIO()
        write(buffer, checkpoint(P.NONE), records, compression)
        return buffer.getvalue()

    legacy = io.BytesIO()
    torch.save(dict(a=torch.ones(2)), legacy,
               _use_new_zipfile_serialization=False)
    return {
        'cut': zipped()[:-100],
        # Every record of the directory has a size of 4 GB.
        'sizes': re.sub(b'(PK\1\2.{16}).{8}', lambda x: x[1] + b'\x7f' * 8,
                        zipped(), flags=re.S),
        'bomb': zipped({'data/0': bytes(16), 'more': bytes(1 << 22)},
                       zipfile.ZIP_DEFLATED),
        'no record': zipped({'data/7': bytes(16)}),
        'short record': zipped({'data/0': bytes(15)}),
        'legacy': legacy.getvalue()[:-1],
    }


def originals() -> list[tuple[bytes, dict]]:
    """Pickles and records of right checkpoints, to be mutated."""
    state_dict = torch.nn.Sequential(
        torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)).state_dict()
    ours = dict(
        meta=dict(epoch=1, iter=4, classes=('a', 'b')),
        state_dict=state_dict,
        message_hub=dict(
            log_scalars=OrderedDict(loss=HistoryBuffer([1., 2.], [1, 1])),
            runtime_info=OrderedDict(score=np.float64(0.5), ids=np.arange(3))),
        optimizer=dict(state={0: dict(step=torch.tensor(1.))},
                       param_groups=[dict(betas=(0.9, 0.99), params=[0])]),
        param_schedulers=[dict(milestones=Counter([1, 2]))])
    official = dict(model=state_dict, args=Namespace(model='vanillanet_5'))
    found = []
    for content in (ours, official):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as archive:
            records = {x.removeprefix('archive/'): archive.read(x)
                       for x in archive.namelist() if '/data/' in x}
            found.append((archive.read('archive/data.pkl'), records))
    return found


ANY = ('os.system', 'builtins.eval', 'collections.OrderedDict',
       'collections.Counter', 'torch.Size', 'torch.QInt8Storage',
       'torch._utils._rebuild_tensor', 'torch._utils._rebuild_parameter')
NUMBERS = [0, 1, 2, 3, 5, 255, 65536, 2**31 - 1, 2**40, 2**63, -1, -2**40]
SIMPLE = [op.code.encode('latin1') for op in pickletools.opcodes
          if op.arg is None]


def mutate(pickled: bytes, rng: random.Random, canary: Path) -> bytes:
    """Change one to three opcodes of a pickle."""
    starts = [pos for _, _, pos in pickletools.genops(pickled)]
    ops = [pickled[a:b] for a, b in zip(starts, starts[1:] + [None])]
    names = [name(*x.rsplit('.', 1)) for x in [*NAMES, *ANY]]
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(ops)), rng.choice(ops)
        kind = rng.randrange(6)
        if kind == 0:  # nothing, itself twice, or another in its place
            ops[at:at + 1] = rng.choice([[], [ops[at]] * 2, [other]])
        elif kind == 1:
            ops[at:at + rng.randrange(2)] = [rng.choice(SIMPLE)]
        elif kind == 2:
            ops.insert(at, rng.choice([*payloads(canary).values()]))
        elif kind == 3:
            ops[at] = bytes([rng.randrange(256)]) + ops[at][1:]
        else:  # a name for a name, a number for a number
            new, wanted = rng.choice([
                (rng.choice(names), P.GLOBAL),
                (integer(rng.choice(NUMBERS)), b'KMJ')])
            same = [i for i, op in enumerate(ops) if op[:1] in wanted]
            if same:
                ops[rng.choice(same)] = new
    return b''.join(ops)


def files(canary: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """All of the above as files, and mutations up to ``count`` in all."""
    broken = broken_files()
    yield from broken.items()
    pickles = {title: (pickled, None) for title, pickled in {
        **tricks(canary), **oddities()}.items()}
    rng, sources = random.Random(0), originals()
    for i in range(count - len(broken) - len(pickles)):
        pickled, records = sources[i % 4 == 3]
        pickles[f'mutation {i}'] = mutate(pickled, rng, canary), records
    for title, content in pickles.items():
        buffer = io.BytesIO()
        write(buffer, *content)
        yield title, buffer.getvalue()


def read_all(folder: Path, count: int) -> dict:
    """Read the files by mmengine's loader and by ours."""
    path = folder / 'hostile.pth'
    result = dict(refused=[], accepted=[], wrong={})
    for title, content in files(folder / 'canary', count):
        path.write_bytes(content)
        (folder / 'now').write_text(title)
        try:
            with safe_reading():
                CheckpointLoader.load_checkpoint(
                    str(path), map_location='cpu', logger='silent')
        except Exception:  # of any class: code that ran leaves the canary
            pass
        kind = 'accepted'
        try:
            load_checkpoint(path)
        except UserError as e:
            kind = 'refused'
            if '\n' in str(e):
                result['wrong'][title] = 'lines'
        except Exception as e:
            result['wrong'][title] = f'{type(e).__name__}: {e}'
        result[kind].append(title)
    (folder / 'result.json').write_text(json.dumps(result))
    return result


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    print(json.dumps(read_all(Path(sys.argv[1]), int(sys.argv[2]))))
