# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Writing files whole or not at all, and only over files of our own."""
import fcntl
import hashlib
import mmap
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import DISK_ERRORS, UserError

# Every file that a tool writes holds this text: a comment, an entry of its
# meta or its metadata. A file without it is not replaced unasked.
MARK = 'written by mmvanilla'
PREFIX = '.mmvanilla-'
# For the descriptor of a lock, where the file system has none.
NO_LOCKS = -1


def signed(text: str) -> str:
    """A Python file's text behind a comment that marks it as ours.

    The comment holds the text's SHA-256, so that an edited file is the
    user's.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'# {MARK}, sha256 of the lines below: {digest}\n{text}'


def is_ours(path: str | Path) -> bool:
    """Whether a file is, unchanged, one that mmvanilla wrote.

    The weights of an OpenVINO network (``.bin``) cannot hold
    :data:`MARK`; they are ours where their ``.xml`` is.
    """
    path = Path(path)
    if path.suffix == '.bin':
        path = path.with_suffix('.xml')
    if not path.is_file():
        return False
    if path.suffix == '.py':
        content = path.read_bytes().decode(errors='replace')
        return content == signed(content.partition('\n')[2])
    if not path.stat().st_size:
        return False
    with open(path, 'rb') as f, mmap.mmap(
            f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARK.encode()) >= 0


def check_output(path: str | Path,
                 inputs: Iterable[str | Path] = (),
                 force: bool = False) -> None:
    """Refuse, before any work is done, a file that must not be written.

    Args:
        path (str | Path): The file to write.
        inputs (Iterable[str | Path]): Files that the same command reads.
            Those that do not exist are ignored.
        force (bool): Whether to replace a file that :func:`is_ours` does not
            know. Defaults to False.

    Raises:
        UserError: If the folder is missing or not writable, the name is too
            long, or ``path`` is a folder, no regular file, one of ``inputs``,
            or, without ``force``, a file that mmvanilla did not write.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f'cannot write to {path}: it is a folder, and the '
                            'name of a file is wanted')
        if not path.parent.is_dir():
            raise UserError(f'cannot write to {path}: the folder '
                            f'{path.parent} does not exist')
        # Asking the file system, since root passes every permission check;
        # by a file of the same name, which may be too long for it.
        with _temporary_folder(path.parent) as folder:
            (folder / path.name).touch()
        if not path.exists():
            return
        if not path.is_file():
            raise UserError(f'cannot write to {path}: it is not a regular '
                            'file')
        for given in inputs:
            if os.path.exists(given) and path.samefile(given):
                raise UserError(f'cannot write to {path}: it is {given}, '
                                'which this command reads')
        if not force and not is_ours(path):
            raise UserError(
                f'cannot write to {path}: it exists and mmvanilla did not '
                'write it, or it was changed since; take another name, or '
                '--force to replace it')
    except OSError as e:
        raise UserError(f'cannot write to {path}: {e.strerror}') from e


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` on success.

    The file has the same name in a random folder beside. It is on the disk
    before it is renamed. On an exception and on SIGTERM the folder is removed
    and ``path`` is untouched. Folders of runs that were killed are removed
    first.
    """
    with replace_together([path]) as (temporary, ):
        yield temporary


@contextmanager
def replace_together(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """:func:`replace_atomically` for files of one folder that belong together.

    A kill never leaves a new one beside an old one: first all but the first
    are removed, then the first is replaced, then the others appear.

    Raises:
        UserError: If the disk is full or cannot be written to.
    """
    paths = [Path(path) for path in paths]
    with _disk_errors(paths[0]), _temporary_folder(
            paths[0].parent) as folder:
        temporary = [folder / path.name for path in paths]
        yield temporary
        for written in temporary:
            _fsync(written)
        held = {signal.SIGTERM, signal.SIGINT}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            for path in paths[1:]:
                path.unlink(missing_ok=True)
            for written, path in zip(temporary, paths):
                os.replace(written, path)
            _fsync(paths[0].parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_ERRORS:
            raise
        raise UserError(f'cannot write {path}: {e.strerror}') from e
    except RuntimeError as e:
        # What torch.save raises when its writer gets an OSError.
        if 'PytorchStreamWriter' not in str(e) and 'inline_container' not in (
                str(e)):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(f'cannot write {path}: the disk has {free / 1e6:.0f} '
                        'MB left, or cannot be written to') from e


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder of a random name, locked as long as its process lives."""
    for old in parent.glob(f'{PREFIX}*'):
        lock = _lock(old)
        if lock not in (None, NO_LOCKS):
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
    with _exit_on_sigterm():
        lock = None
        while lock is None:  # another process may just have taken it for old
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = _lock(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock != NO_LOCKS:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A file descriptor that locks a folder.

    None if the folder is gone or another process has it, :data:`NO_LOCKS` if
    its file system has no locks.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        return NO_LOCKS
    os.close(lock)
    return None


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Clean up on SIGTERM, unless the program has a handler of its own."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM,
                  lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
