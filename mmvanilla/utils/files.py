# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Writing files whole or not at all."""
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def check_writable(path: str | Path) -> None:
    """Refuse, before any work is done, a path that cannot be written.

    Raises:
        UserError: If the folder is missing or not writable, or ``path`` is a
            folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'cannot write to {path}: it is a folder, and the '
                        'name of a file is wanted')
    if not path.parent.is_dir():
        raise UserError(f'cannot write to {path}: the folder {path.parent} '
                        'does not exist')
    try:
        # Asking the file system, since root passes every permission check.
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise UserError(f'cannot write to {path}: {e.strerror}') from e


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, renamed to it on success.

    On an exception the temporary file goes and ``path`` is untouched. The
    name keeps the suffix of ``path``, which some writers look at.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
