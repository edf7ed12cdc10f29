# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checkpoint files that attack who reads them.

Run as a script, it reads many of them and prints how each was refused:
``python hostile.py FOLDER FIRST LAST``.
"""
import io
import json
import pickle
import pickletools
import random
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

P = pickle


# ------------------------------------------------------- assembling pickles


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


def data(value: bytes) -> bytes:
    return call('_codecs', 'encode', text(value.decode('latin1')),
                text('latin1'))


def checkpoint(value: bytes, weight: bytes | None = None) -> bytes:
    """A pickle of a checkpoint that is right but for one entry."""
    good = dict(state_dict=dict_(weight=weight or tensor()), extra=value)
    return b'\x80\x02' + dict_(**good) + P.STOP


def storage(kind='FloatStorage', key='0', numel=4, *more: bytes) -> bytes:
    return tuple_(text('storage'), name('torch', kind), text(key),
                  text('cpu'), integer(numel), *more) + P.BINPERSID


def tensor(stored=None, offset=0, size=(2, 2), stride=(2, 1),
           function='_rebuild_tensor_v2') -> bytes:
    return call('torch._utils', function, stored or storage(),
                integer(offset), tuple_(*map(integer, size)),
                tuple_(*map(integer, stride)), P.NEWFALSE,
                call('collections', 'OrderedDict'))


def dtype(kind: str, state: bytes | None = None) -> bytes:
    state = state or tuple_(integer(3), text('<'), P.NONE, P.NONE, P.NONE,
                            integer(-1), integer(-1), integer(0))
    return call('numpy', 'dtype', text(kind), P.NEWFALSE,
                P.NEWTRUE) + state + P.BUILD


def array(kind='f8', shape=(1, ), content=b'A' * 8, **kwargs) -> bytes:
    return call('numpy.core.multiarray', '_reconstruct',
                name('numpy', 'ndarray'), tuple_(integer(0)),
                data(b'b')) + tuple_(
                    integer(1), tuple_(*map(integer, shape)),
                    dtype(kind, **kwargs), P.NEWFALSE, data(content)) + P.BUILD


def write(path: Path, pickled: bytes, records=None, compression=0) -> None:
    """Write a file as torch.save does."""
    records = records or {'data/0': bytes(16), 'data/1': bytes(16)}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/byteorder', b'little')
        for key, value in records.items():
            archive.writestr(f'a/{key}', value)
        archive.writestr('a/version', b'3\n')


# ------------------------------------------------------------ known tricks


def payloads(canary: Path) -> dict[str, bytes]:
    """Calls that create the file ``canary`` where they are executed."""
    shell, python = f'touch {canary}', f'open({str(canary)!r}, "w")'
    return {
        'os.system': call('os', 'system', text(shell)),
        'subprocess': call('subprocess', 'getoutput', text(shell)),
        'eval': call('builtins', 'eval', text(python)),
        'runpy': call('runpy', '_run_code', text(python), dict_()),
        'stack_global': text('os') + text('system') + P.STACK_GLOBAL +
        tuple_(text(shell)) + P.REDUCE,
        'newobj': name('subprocess', 'Popen') + tuple_(
            P.EMPTY_LIST + text('touch') + P.APPEND + text(str(canary)) +
            P.APPEND) + P.NEWOBJ,
        'globals': call(
            'builtins', 'getattr',
            call('builtins', 'getattr',
                 name('mmengine.logging.history_buffer', 'HistoryBuffer'),
                 text('update')), text('__globals__')),
        'real getattr': with_real_getattr(canary),
        'setstate': name('argparse', 'Namespace') + P.EMPTY_TUPLE +
        P.NEWOBJ + dict_(__class__=name('os', 'system')) + P.BUILD,
        'build': call('collections', 'OrderedDict') +
        dict_(_metadata=name('os', 'system')) + P.BUILD,
        'default_factory': call('collections', 'defaultdict',
                                name('os', 'system')),
    }


def with_real_getattr(canary: Path) -> bytes:
    """Runs code where ``getattr`` and an object with attributes are allowed.

    It makes ``eval`` what ``torch._utils`` calls ``torch.nn.Parameter``.
    """

    def attribute(owner: bytes, attr: str) -> bytes:
        return call('builtins', 'getattr', owner, text(attr))

    def holder(**attributes: bytes) -> bytes:
        return name('mmengine.logging.history_buffer', 'HistoryBuffer') + (
            P.EMPTY_TUPLE + P.NEWOBJ + dict_(**attributes) + P.BUILD)

    run = attribute(
        attribute(name('builtins', 'getattr'), '__self__'), 'eval')
    names = attribute(
        name('torch._utils', '_rebuild_parameter'), '__globals__')
    return tuple_(
        names + text('torch') + holder(nn=holder(Parameter=run)) + P.SETITEM,
        call('torch._utils', '_rebuild_parameter',
             text(f'open({str(canary)!r}, "w").close()'), P.EMPTY_DICT,
             P.NONE))


def tricks(canary: Path) -> dict[str, bytes]:
    """Pickles by name, each of which a reader must refuse."""
    history = name('mmengine.logging.history_buffer', 'HistoryBuffer')
    found = {
        'ndarray pointer': call('numpy', 'ndarray', P.EMPTY_TUPLE, text('O'),
                                data(b'A' * 8)),
        'ndarray over-read': call('numpy', 'ndarray',
                                  tuple_(integer(1 << 20)), text('f8'),
                                  data(b'A' * 8)),
        'object array': array('O'),
        'object scalar': call('numpy.core.multiarray', 'scalar', dtype('O'),
                              data(b'A' * 8)),
        'structured dtype': array(
            'V8', state=tuple_(integer(3), text('|'), P.NONE,
                               tuple_(text('a')),
                               dict_(a=tuple_(dtype('O'), integer(0))),
                               integer(8), integer(1), integer(27))),
        'big-endian': array(
            state=tuple_(integer(3), text('>'), P.NONE, P.NONE, P.NONE,
                         integer(-1), integer(-1), integer(0))),
        'short array': array(shape=(2, )),
        'long array': array(shape=(1 << 60, 1 << 60)),
        'negative shape': array(shape=(-1, -1)),
        'number of another size': call('numpy.core.multiarray', 'scalar',
                                       dtype('f8'), data(b'A')),
        'array of a class': call('numpy.core.multiarray', '_reconstruct',
                                 name('collections', 'OrderedDict'),
                                 tuple_(integer(0)), data(b'b')),
        'array state of a dtype': dtype('f8') + array() + P.BUILD,
        'another method': call('builtins', 'getattr', history,
                               text('update')),
        'history of lists': history + P.EMPTY_TUPLE + P.NEWOBJ + dict_(
            _log_history=P.EMPTY_LIST, _count_history=P.EMPTY_LIST,
            max_length=integer(1)) + P.BUILD,
        'history of a matrix': history + P.EMPTY_TUPLE + P.NEWOBJ + dict_(
            _log_history=array(shape=(1, 1)), _count_history=array(),
            max_length=integer(1)) + P.BUILD,
        'storage too long': tensor(storage(numel=1 << 40), size=(1 << 40, ),
                                   stride=(1, )),
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
        'class': name('mmengine.logging.history_buffer', 'HistoryBuffer'),
        'storage': storage(),
        'deep key': P.EMPTY_DICT + P.EMPTY_TUPLE + P.TUPLE1 * 50000 + P.NONE +
        P.SETITEM,
        'deep lists': P.EMPTY_LIST + (P.EMPTY_LIST * 99999) +
        P.APPEND * 99999,
        'list in itself': P.EMPTY_LIST + P.BINPUT + b'\1' + P.BINGET +
        b'\1' + P.APPEND,
    }
    return {key: checkpoint(value) for key, value in found.items()}


def broken_files() -> dict[str, bytes]:
    """Files by name that are wrong as archives, not as pickles."""
    good = checkpoint(P.NONE)
    old = checkpoint(
        P.NONE, tensor(storage('FloatStorage', '0', 4, P.NONE)))

    def zipped(pickled=good, records=None, compression=0) -> bytes:
        buffer = io.BytesIO()
        write(buffer, pickled, records, compression)
        return buffer.getvalue()

    def legacy(keys: list, numel: int, size: int) -> bytes:
        header = (0x1950a86a20f9469cfc6c, 1001, dict(little_endian=True))
        return b''.join(pickle.dumps(part, 2) for part in header) + (
            old + pickle.dumps(keys, 2) + struct.pack('<q', numel) +
            bytes(size))

    whole = zipped()
    # Every record of the directory has a size of 4 GB.
    huge = bytearray(whole)
    at = 0
    while (at := huge.find(b'PK\1\2', at)) >= 0:
        huge[at + 20:at + 28] = b'\xfe\xff\xff\xff' * 2
        at += 4
    return {
        'cut': whole[:len(whole) // 2],
        'sizes': bytes(huge),
        'compressed': zipped(records={'data/0': bytes(1 << 22)},
                             compression=zipfile.ZIP_DEFLATED),
        'no record': zipped(records={'data/7': bytes(16)}),
        'short record': zipped(records={'data/0': bytes(15)}),
        'no pickle': zipped(b''),
        'no stop': zipped(good[:-1]),
        'legacy, other keys': legacy(['1'], 4, 16),
        'legacy, too long': legacy(['0'], 1 << 40, 16),
        'legacy, too short': legacy(['0'], 4, 15),
    }


# ---------------------------------------------------------------- mutating


def originals() -> list[bytes]:
    """Pickles of right checkpoints, to be mutated."""
    from mmengine.logging import HistoryBuffer
    state_dict = torch.nn.Sequential(
        torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)).state_dict()
    ours = dict(
        meta=dict(epoch=1, iter=4, dataset_meta=dict(classes=('a', 'b'))),
        state_dict=state_dict,
        message_hub=dict(
            log_scalars=OrderedDict(loss=HistoryBuffer([1., 2.], [1, 1])),
            runtime_info=OrderedDict(score=np.float64(0.5), ids=np.arange(3)),
            resumed_keys=OrderedDict(loss=True)),
        optimizer=dict(state={0: dict(step=torch.tensor(1.))},
                       param_groups=[dict(betas=(0.9, 0.99), params=[0])]),
        param_schedulers=[dict(milestones=Counter([1, 2]))])
    official = dict(model=state_dict, args=Namespace(model='vanillanet_5'))
    return [_pickle_of(ours), _pickle_of(official)]


def _pickle_of(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read('archive/data.pkl')


ANY = ('os.system', 'builtins.eval', 'collections.OrderedDict',
       'collections.Counter', 'torch.Size', 'torch.QInt8Storage',
       'torch._utils._rebuild_tensor', 'torch._utils._rebuild_parameter')
NUMBERS = [0, 1, 2, 3, 5, 255, 65536, 2**31 - 1, 2**40, 2**63, -1, -2**40]


def mutate(pickled: bytes, rng: random.Random, canary: Path) -> bytes:
    """Change one to three opcodes of a pickle."""
    from mmvanilla.checkpoints.constructors import NAMES
    starts = [pos for _, _, pos in pickletools.genops(pickled)]
    ops = [pickled[a:b] for a, b in zip(starts, starts[1:] + [None])]
    simple = [
        op.code.encode('latin1') for op in pickletools.opcodes
        if op.arg is None
    ]
    names = [name(*x.rsplit('.', 1)) for x in [*NAMES, *ANY]]
    attacks = list(payloads(canary).values())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(ops))
        kind = rng.randrange(6)
        if kind == 0:  # nothing, itself twice, or another in its place
            other = rng.randrange(len(ops))
            ops[at:at + 1] = rng.choice([[], [ops[at]] * 2, [ops[other]]])
        elif kind == 1:
            ops[at:at + rng.randrange(2)] = [rng.choice(simple)]
        elif kind == 2:
            ops.insert(at, rng.choice(attacks))
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
    yield from broken_files().items()
    pickles = {**tricks(canary), **oddities()}
    rng = random.Random(0)
    sources = originals()
    done = len(broken_files()) + len(pickles)
    for i in range(count - done):
        pickles[f'mutation {i}'] = mutate(sources[i % 4 == 3], rng, canary)
    records = {f'data/{i}': bytes(16) for i in range(8)}
    for title, pickled in pickles.items():
        buffer = io.BytesIO()
        write(buffer, pickled, records)
        yield title, buffer.getvalue()


# ------------------------------------------------------------ reading them


def read_all(folder: Path, first: int, last: int, count: int) -> dict:
    """Read a part of the files; what was refused, accepted, and went wrong.

    Read by our reader and, inside of ``safe_reading()``, by mmengine's.
    """
    from mmengine.runner import CheckpointLoader

    from mmvanilla.checkpoints import (
        load_checkpoint,
        read_checkpoint,
        safe_reading,
    )
    from mmvanilla.utils.errors import UserError

    def by_mmengine(path):
        with safe_reading(str(path)):
            CheckpointLoader.load_checkpoint(
                str(path), map_location='cpu', logger='silent')

    path = folder / f'{first}.pth'
    result = dict(refused=[], accepted=[], wrong={})
    for i, (title, content) in enumerate(files(folder / 'canary', count)):
        if not first <= i < last:
            continue
        path.unlink(missing_ok=True)  # it may be mapped
        path.write_bytes(content)
        (folder / f'{first}.now').write_text(title)
        try:
            by_mmengine(path)
        except Exception:  # of any class: code that ran leaves the canary
            pass
        kind = 'accepted'
        for read in (read_checkpoint, load_checkpoint):
            try:
                read(path)
            except UserError as e:
                kind = 'refused'
                if '\n' in str(e):
                    result['wrong'][title] = 'lines'
            except Exception as e:
                result['wrong'][title] = f'{type(e).__name__}: {e}'
        result[kind].append(title)
    return result


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    folder, first, last, count = sys.argv[1:]
    print(json.dumps(read_all(Path(folder), int(first), int(last),
                              int(count))))
