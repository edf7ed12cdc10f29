# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Reading a checkpoint without running anything that it holds."""
import pickle
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..utils.errors import UserError

# Where numpy's functions live differs between numpy 1 and 2, and their
# pickles name that place.
_multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray


def _history_statistic(owner, name):
    """Stand in for ``getattr``, which pickles name for methods.

    The real one would hand a malicious pickle any attribute of anything.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'Unsupported global: GLOBAL getattr({owner}, {name!r})')


# All that mmengine's checkpoints hold besides tensors and plain Python: the
# message hub's log history, numpy scalars and numeric arrays.
MMENGINE_CLASSES = [
    HistoryBuffer, (_history_statistic, 'builtins.getattr'), np.ndarray,
    np.dtype, _multiarray._reconstruct, _multiarray.scalar,
    *(type(np.dtype(kind)) for kind in '?bBhHiIlLqQefd')
]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read what mmengine itself saved, and no more.

    From torch 2.6 on, ``torch.load`` refuses every class that it does not
    know, and mmengine up to 0.10.7 does not name its own: without this,
    neither resuming nor testing works there. ``weights_only`` stays on.
    """
    torch.serialization.add_safe_globals(MMENGINE_CLASSES)


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of mmengine's or of the authors', and run nothing.

    Only tensors, plain Python, :data:`MMENGINE_CLASSES` and
    ``argparse.Namespace``, which the authors' files hold, are allowed in it.

    Args:
        path (str | Path): The file.

    Returns:
        dict: What it holds, tensors on the CPU.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, is cut
            short, or holds anything else than what is allowed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'cannot read {path}: there is no such file')
    try:
        path.open('rb').close()
    except OSError as e:
        raise UserError(f'cannot read {path}: {e.strerror}') from e
    # Those allowed for good would be forbidden when the context ends.
    known = torch.serialization.get_safe_globals()
    allowed = [c for c in [*MMENGINE_CLASSES, Namespace] if c not in known]
    try:
        with torch.serialization.safe_globals(allowed):
            checkpoint = torch.load(path, 'cpu', weights_only=True)
    except Exception as e:  # torch and pickle raise nearly everything here
        found = re.search(r'GLOBAL (.+?)(?: was not an allowed| whose|$)',
                          str(e), re.MULTILINE)
        if found:
            raise UserError(
                f'{path} is refused: it would call {found[1]}, which no '
                'checkpoint of a network needs and which may be harmful'
            ) from e
        raise UserError(
            f'{path} is not a checkpoint, or is cut short') from e
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} is not a checkpoint: it holds a '
                        f'{type(checkpoint).__name__}, not a dict')
    return checkpoint
