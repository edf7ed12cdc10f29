# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Output on the terminal."""
import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar('T')
# Beginnings of lines and warnings about optional packages, which the toolboxes
# print when they are imported.
NOISE = ('Could not import OneDL', )
WARNINGS = ('Fail to import ``MultiScaleDeformableAttention``', )


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide the lines on optional packages that imports print.

    Other lines are printed when the context ends.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings('ignore', message=message)
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if not line.startswith(NOISE):
                print(line)


def import_toolbox(scope: str) -> None:
    """Import mmdet or mmseg quietly, before its registries do it."""
    with quiet_imports():
        importlib.import_module(f'{scope}.datasets')


def track(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Iterate over ``items``, with a progress bar on a terminal.

    Args:
        items (Iterable): What to iterate over.
        what (str): Label of the bar.
        total (int): Number of items.
    """
    if not sys.stderr.isatty():
        return items
    return rich_track(
        items, what, total, console=Console(stderr=True), transient=True)


def some(names: Sequence, most: int = 3) -> str:
    """List the first ``most`` of ``names`` and the number of others."""
    shown = ', '.join(map(str, names[:most]))
    if len(names) > most:
        shown += f' and {len(names) - most} more'
    return shown
