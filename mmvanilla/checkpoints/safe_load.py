# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Reading a checkpoint file without running code that it holds."""
import zipfile
from argparse import Namespace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..utils.errors import UserError
from .allowed import RefusedError, Storage, need
from .unpickler import Unpickler, check_plain

ZIP_MAGIC = b'PK\x03\x04'
# The header of files that torch wrote before version 1.6.
LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
LEGACY_PROTOCOL = 1001


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of mmengine or of the authors without running code.

    Allowed are dense tensors, strings, numbers, lists, tuples, dicts, numeric
    arrays and mmengine's log history. ``args`` may be an
    ``argparse.Namespace``, as in official files. ``meta`` must not hold
    tensors. Every tensor must lie inside its storage.

    Args:
        path (str | Path): The file.

    Returns:
        dict: The content of the file, tensors on the CPU.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, is
            damaged, or holds anything that is not allowed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'cannot read {path}: there is no such file')
    try:
        with path.open('rb') as file:
            content = _read(file, path.stat().st_size)
        need(isinstance(content, dict), f'it holds a {type(content).__name__},'
             ' not a dict')
        _check(content)
    except RefusedError as e:
        raise UserError(
            f'{path} is refused: it asks for {_one_line(e)}, which no '
            'checkpoint of a network needs and which may be harmful') from e
    except OSError as e:
        raise UserError(f'cannot read {path}: {e.strerror or e}') from e
    except ValueError as e:
        raise UserError(f'{path} is not a checkpoint, or is cut short or '
                        f'damaged: {_one_line(e)}') from e
    except Exception as e:  # zipfile, pickle and torch may raise any
        raise UserError(f'{path} is not a checkpoint, or is cut short or '
                        'damaged') from e
    return content


def _one_line(error: Exception) -> str:
    text = ' '.join(str(error).split())[:200]
    return text.encode('ascii', 'backslashreplace').decode()


def _read(file: BinaryIO, size: int) -> Any:
    start = file.read(4)
    file.seek(0)
    if start == ZIP_MAGIC:
        return _read_zip(file, size)
    need(start[:1] == b'\x80', 'torch.save did not write it')
    return _read_legacy(BytesIO(file.read()), size)


def _read_zip(file: BinaryIO, size: int) -> Any:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    roots = [n[:-8] for n in names if n.endswith('data.pkl') and '/' in n]
    need(len(roots) == 1, 'torch.save did not write it')
    root, = roots
    need(f'{root}constants.pkl' not in names, 'it holds a TorchScript module')
    left = size

    def read(name: str) -> bytes | Tensor:
        nonlocal left
        info = archive.getinfo(root + name)
        # Records may point to the same bytes of the file: each byte counts
        # once, so memory is bounded by the size of the file.
        need(info.compress_type == zipfile.ZIP_STORED
             and info.file_size == info.compress_size <= left,
             'a record is larger than the file')
        left -= info.file_size
        data = torch.empty(info.file_size, dtype=torch.uint8)
        with archive.open(info) as record:
            # Reading to the end checks the record's checksum.
            length = record.readinto(memoryview(data.numpy()))
            need(length == info.file_size and not record.read(1),
                 'a record is cut short')
        return data

    if f'{root}byteorder' in names:
        need(read('byteorder').numpy().tobytes() == b'little',
             'its numbers are not little-endian')
    storages: dict[str, torch.UntypedStorage] = {}

    def load_storage(key, dtype, numel) -> Storage:
        if key not in storages:
            storages[key] = read(f'data/{key}').untyped_storage()
        need(numel * dtype.itemsize <= storages[key].nbytes(),
             'a storage is longer than its record')
        return Storage(dtype, numel, storages[key])

    return Unpickler(BytesIO(read('data.pkl').numpy()), load_storage).load()


def _read_legacy(file: BytesIO, size: int) -> Any:
    storages: dict[str, Storage] = {}

    def no_storage(*_):
        raise RefusedError('a storage outside of the content')

    def load_storage(key, dtype, numel) -> Storage:
        nonlocal size
        if key not in storages:
            size -= numel * dtype.itemsize
            need(size >= 0, 'a storage is larger than the file')
            data = torch.UntypedStorage(numel * dtype.itemsize)
            storages[key] = Storage(dtype, numel, data)
        need((dtype, numel) == (storages[key].dtype, storages[key].numel),
             'a storage has two sizes')
        return storages[key]

    header = [Unpickler(file, no_storage).load() for _ in range(3)]
    need(header[:2] == [LEGACY_MAGIC, LEGACY_PROTOCOL]
         and header[2]['little_endian'] is True, 'torch.save did not write it')
    content = Unpickler(file, load_storage).load()
    keys = Unpickler(file, no_storage).load()
    need(type(keys) is list and sorted(keys) == sorted(storages),
         'its storages are not those of its tensors')
    for key in keys:
        storage = storages[key]
        need(int.from_bytes(file.read(8), 'little') == storage.numel,
             'a storage is cut short')
        data = torch.empty(0, dtype=torch.uint8).set_(storage.data)
        need(file.readinto(memoryview(data.numpy())) == len(data),
             'a storage is cut short')
    return content


def _check(content: dict) -> None:
    """Check the classes of objects in each entry of a checkpoint."""
    for key, value in content.items():
        classes = (Tensor, HistoryBuffer)
        if key == 'meta':
            need(isinstance(value, dict), 'its meta is not a dict')
            classes = ()
        elif key == 'args' and 'state_dict' not in content:
            classes = (Namespace, )
        check_plain(value, classes, f'its {str(key)[:40]}')
