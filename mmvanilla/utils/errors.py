# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What a user fed us and what is wanted instead, in one sentence."""
import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that a user can mend; its text is one clear sentence."""


def exit_on_user_error(main: Callable) -> Callable:
    """Make a tool print a :class:`UserError` as one line and exit with 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as e:
            print(f'error: {e}', file=sys.stderr)
            sys.exit(1)

    return wrapped
