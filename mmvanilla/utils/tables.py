# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Tables that the tools print."""


def markdown_table(header: list[str], rows: list[tuple]) -> str:
    """Format a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rows = [header, ['-' * w for w in widths], *rows]
    return '\n'.join(
        '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths)) + ' |'
        for row in rows)
