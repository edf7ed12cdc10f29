# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Text for the terminal: tables, lists, progress."""
import sys
from collections.abc import Iterable, Sequence


def markdown_table(header: list[str], rows: list[tuple]) -> str:
    """Format a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rows = [header, ['-' * w for w in widths], *rows]
    return '\n'.join(
        '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths)) + ' |'
        for row in rows)


def some(names: Sequence, most: int = 3) -> str:
    """List the first ``most`` of ``names`` and the number of others."""
    # Names of files need not be UTF-8.
    shown = ', '.join(map(str, names[:most])).encode(
        errors='backslashreplace').decode()
    if len(names) > most:
        shown += f' and {len(names) - most} more'
    return shown


def track(items: Iterable, what: str, total: int) -> Iterable:
    """Iterate over ``items``, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track
    return track(items, what, total, console=Console(stderr=True),
                 transient=True, disable=not sys.stderr.isatty())
