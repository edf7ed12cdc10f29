# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Write files whole or not at all."""
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def is_exported(path: str | Path) -> bool:
    """Whether a name is that of an exported file, not of a checkpoint."""
    return str(path).lower().endswith(('.onnx', '.xml', '.pt2'))


@contextmanager
def write_beside(*paths: str | Path) -> Iterator[list[Path]]:
    """Yield temporary paths that are flushed and renamed on success."""
    paths = [Path(path) for path in paths]
    try:
        with tempfile.TemporaryDirectory(
                prefix='.mmvanilla-', dir=paths[0].parent) as folder:
            written = [Path(folder, path.name) for path in paths]
            yield written
            for path in written:
                with open(path, 'r+b') as file:
                    os.fsync(file.fileno())
            for path, target in zip(written, paths):
                os.replace(path, target)
    except RuntimeError as e:
        # What torch.save raises when its writer gets an OSError.
        if 'PytorchStreamWriter' in str(e) or 'inline_container' in str(e):
            raise UserError(f'cannot write {paths[0]}: the disk is full, or '
                            'cannot be written to') from e
        raise


def check_output(path: str | Path,
                 inputs: Iterable[str | Path] = (),
                 force: bool = False) -> None:
    """Refuse an output file that cannot or must not be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f'cannot write to {path}: the folder {path.parent} '
                        'does not exist')
    exists = os.path.exists(path)  # Path.exists fails for a long name
    if exists and not path.is_file():
        raise UserError(f'cannot write to {path}: it is not a regular file')
    if exists and any(
            os.path.exists(x) and os.path.samefile(path, x) for x in inputs):
        raise UserError(f'cannot write to {path}: this command reads it')
    if exists and not force:
        raise UserError(f'cannot write to {path}: it exists; use another '
                        'name, or --force to replace it')
    try:
        # os.access does not tell whether root can write there, nor whether
        # the name is too long.
        with tempfile.TemporaryDirectory(
                prefix='.mmvanilla-', dir=path.parent) as folder:
            Path(folder, path.name).touch()
    except OSError as e:
        raise UserError(f'cannot write to {path}: {e.strerror}') from e
