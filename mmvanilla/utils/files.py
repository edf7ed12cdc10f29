# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Writing files atomically, and replacing only files of mmvanilla."""
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

# Every file that a tool writes holds this text in a comment, its meta or its
# metadata. A file without it is replaced only if the user asks for it.
MARK = 'written by mmvanilla'
PREFIX = '.mmvanilla-'
# In the place of a lock's descriptor, if the file system has no locks.
NO_LOCKS = -1


def signed(text: str) -> str:
    """A Python file's text after a comment that marks it as ours.

    The comment holds the text's SHA-256, by which an edited file is known.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'# {MARK}, sha256 of the lines below: {digest}\n{text}'


def is_ours(path: str | Path) -> bool:
    """Whether mmvanilla wrote a file; for ``.py``, also that no one edited it.

    The weights of an OpenVINO network (``.bin``) cannot hold :data:`MARK`;
    the ``.xml`` beside them holds their SHA-256.
    """
    path = Path(path)
    if path.suffix == '.bin':
        network = path.with_suffix('.xml')
        return (path.is_file() and is_ours(network)
                and sha256(path) in network.read_text(errors='replace'))
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
    """Refuse an output file that cannot or must not be written.

    Tools call it before any work is done.

    Args:
        path (str | Path): The file to write.
        inputs (Iterable[str | Path]): Files that the same command reads.
            Those that do not exist are ignored. Defaults to ().
        force (bool): Whether to replace a file for which :func:`is_ours` is
            False. Defaults to False.

    Raises:
        UserError: If the folder is missing or not writable, the name is too
            long, ``path`` is a folder, not a regular file or one of
            ``inputs``, or, without ``force``, mmvanilla did not write it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f'cannot write to {path}: it is a folder, and the '
                            'name of a file is wanted')
        if not path.parent.is_dir():
            raise UserError(f'cannot write to {path}: the folder '
                            f'{path.parent} does not exist')
        # Create a file of the same name, since os.access does not tell
        # whether root can write there, nor whether the name is too long.
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

    The temporary file has the same name, in a folder of a random name beside
    ``path``. It is flushed to the disk before it is renamed. On an exception
    and on SIGTERM the folder is removed and ``path`` is not changed. Folders
    that killed processes left are removed first.

    Raises:
        UserError: If the disk is full or cannot be written to.
    """
    with replace_together([path]) as (temporary, ):
        yield temporary


@contextmanager
def replace_together(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """:func:`replace_atomically` for files of one folder that belong together.

    If the process is killed, a new file is never left beside an old one: all
    but the first are removed, then the first is replaced, then the others are
    put in place.

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
    """Yield a folder of a random name, locked while its process runs."""
    for old in parent.glob(f'{PREFIX}*'):
        lock = _lock(old)
        if lock not in (None, NO_LOCKS):
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
    with _exit_on_sigterm():
        lock = None
        while lock is None:  # another process may have removed it as old
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = _lock(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock != NO_LOCKS:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder and return the lock's file descriptor.

    None if the folder is gone or another process holds the lock,
    :data:`NO_LOCKS` if the file system has no locks.
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
    """Raise SystemExit on SIGTERM, unless the program handles it itself."""
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
