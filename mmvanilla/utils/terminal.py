# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What is shown on a screen, and what is not."""
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
# What the toolboxes print about optional packages while they are imported.
NOISE = ('Could not import OneDL', )
WARNINGS = ('Fail to import ``MultiScaleDeformableAttention``', )


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Import toolboxes without their lines on optional packages.

    Everything else that is printed meanwhile is printed when it ends.
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
    """Import mmdet or mmseg ahead of its registries, which would be loud."""
    with quiet_imports():
        importlib.import_module(f'{scope}.datasets')


def track(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Go through ``items``, with a progress bar where there is a terminal."""
    if not sys.stderr.isatty():
        return items
    return rich_track(
        items, what, total, console=Console(stderr=True), transient=True)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of ``names``, and how many more there are."""
    shown = ', '.join(names[:most])
    if len(names) > most:
        shown += f' and {len(names) - most} more'
    return shown
