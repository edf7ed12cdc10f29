# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The authors' checkpoints by name, as OpenMMLab's loaders take them."""
from http.client import HTTPException
from pathlib import Path

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import replace_atomically
from .official import _some, from_authors
from .safe_load import read_checkpoint

# The authors' published weights: the file's name, and what it is.
PUBLISHED = {
    **{f'vanillanet_{n}': dict(arch=str(n)) for n in range(5, 14)},
    'vanillanet_13_x1_5': dict(arch='13-x1.5'),
    'vanillanet_13_x1_5_ada_pool': dict(arch='13-x1.5-ada'),
    # Trained with knowledge distillation, for dense prediction.
    'vanillanet_13_act_num_4_kd_pretrain': dict(arch='13', act_num=4),
}
SCHEME = 'vanillanet://'
URL = 'https://github.com/huawei-noah/VanillaNet/releases/download/ckpt/'


def _read_authors(path: Path, key: str | None = None) -> tuple:
    """Our state dict out of a file of the authors', and the model's name."""
    checkpoint = read_checkpoint(path)
    if 'state_dict' in checkpoint:
        raise UserError(f"{path} holds state_dict: it is not in the authors' "
                        'format but in that of mmengine, and needs no '
                        'converting')
    if key is None:
        keys = [k for k in ('model_ema', 'model') if k in checkpoint]
        # A bare state dict is one as well.
        state_dict = checkpoint[keys[0]] if keys else checkpoint
    elif key in checkpoint:
        state_dict = checkpoint[key]
    else:
        raise UserError(f'{path} holds no {key}, but '
                        f'{_some(list(checkpoint))}')
    tensors = isinstance(state_dict, dict) and all(
        isinstance(value, Tensor) for value in state_dict.values())
    if not tensors or not state_dict:
        raise UserError(f"{path} is not in the authors' format: it holds "
                        f'{_some(list(checkpoint)) or "nothing"}, and neither '
                        'model_ema nor model with tensors')
    try:
        state_dict = from_authors(state_dict)
    except UserError as e:
        raise UserError(f"{path} is not in the authors' format: {e}") from e
    name = getattr(checkpoint.get('args'), 'model', None) or path.stem
    return state_dict, str(name)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_vanillanet(filename: str,
                         map_location: str | None = None) -> dict:
    """Load a checkpoint of the authors' as one of ours.

    It is what stands behind ``vanillanet://`` wherever OpenMMLab takes a
    checkpoint: ``vanillanet://vanillanet_6`` is downloaded once, into
    ``torch.hub``'s cache; ``vanillanet:///any/file.pth`` is a file.

    Args:
        filename (str): The name with its scheme.
        map_location (str, optional): Not used, as OpenMMLab copies what is
            read into a model anyway: the tensors are on the CPU.

    Returns:
        dict: ``state_dict``, the averaged weights where there are any, and
        ``meta``.

    Raises:
        UserError: If the name is not a published one, the file is in another
            format, or the download fails.
    """
    state_dict, _ = _read_authors(local_path(filename))
    return dict(state_dict=state_dict, meta=dict(source=filename))


def load_checkpoint(name: str | Path) -> dict:
    """Load a checkpoint by its path or by its ``vanillanet://`` name.

    Raises:
        UserError: As :func:`read_checkpoint` and :func:`load_from_vanillanet`.
    """
    if str(name).startswith(SCHEME):
        return load_from_vanillanet(str(name))
    return read_checkpoint(name)


def local_path(name: str | Path) -> Path:
    """Where the file of a checkpoint lies, downloaded if need be."""
    if not str(name).startswith(SCHEME):
        return Path(name)
    name = str(name)[len(SCHEME):]
    return Path(name) if name.startswith('/') else _download(name)


def _download(name: str) -> Path:
    """Path of a published file in the cache, downloaded if it is not there."""
    if name not in PUBLISHED:
        raise UserError(
            f'vanillanet://{name} is not known; there are '
            f'{", ".join(PUBLISHED)}, and vanillanet:///path/to/file.pth')
    path = Path(torch.hub.get_dir()) / 'checkpoints' / f'{name}.pth'
    try:
        if get_local_rank() == 0 and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as part:
                torch.hub.download_url_to_file(f'{URL}{name}.pth', str(part))
                # A line that was cut leaves a short file and no error.
                read_checkpoint(part)
    except (OSError, HTTPException, UserError) as e:
        raise UserError(f'cannot download {URL}{name}.pth ({e}): put the file '
                        f'by hand at {path}') from e
    finally:
        barrier()
    return path
