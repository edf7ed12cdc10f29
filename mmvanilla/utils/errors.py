# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Errors in a user's input, reported in one sentence."""
import errno
import functools
import sys
from collections.abc import Callable

# The disk is full, over quota or read-only, or the file is too large.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class UserError(Exception):
    """An error that a user can correct.

    Its text is one sentence: what was given and what is wanted.
    """


class WeightsError(UserError, RuntimeError):
    """Weights do not fit a network, for which torch raises RuntimeError."""


def exit_on_user_error(main: Callable) -> Callable:
    """Make a tool print what a user can correct as one line, and exit 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as e:
            message = str(e)
        except OSError as e:
            if e.filename is None and e.errno not in DISK_ERRORS:
                raise
            message = ': '.join(str(part) for part in (
                e.filename, e.strerror) if part)
        except Exception as e:
            from .configs import build_error  # which imports torch
            message = build_error(e)
            if message is None:
                raise
        print(f'error: {message}', file=sys.stderr)
        sys.exit(1)

    return wrapped
