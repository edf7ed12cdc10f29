# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The authors' official weights, by name."""
from pathlib import Path

from torch import Tensor

from ..utils.errors import UserError
from ..utils.terminal import some
from .download import download, hub_folder
from .official import from_authors, is_official_detector
from .safe_load import read_checkpoint
from .validate import check_state_dict

# The authors' published weights: name of the file, arguments of the network.
PUBLISHED = {
    **{f'vanillanet_{n}': dict(arch=str(n)) for n in range(5, 14)},
    'vanillanet_13_x1_5': dict(arch='13-x1.5'),
    'vanillanet_13_x1_5_ada_pool': dict(arch='13-x1.5-ada'),
    # Trained with knowledge distillation, for dense prediction.
    'vanillanet_13_act_num_4_kd_pretrain': dict(arch='13', act_num=4),
    # Checkpoints of mmdetection 2.x.
    'retinanet_vanillanet_13': dict(arch='13', act_num=4),
    'mask_rcnn_vanillanet_13': dict(arch='13', act_num=4),
}
SCHEME = 'vanillanet://'
URL = 'https://github.com/huawei-noah/VanillaNet/releases/download/ckpt/'


def read_official_file(path: Path,
                       key: str | None = None) -> tuple[dict, dict]:
    """Read a file in the authors' format.

    Args:
        path (Path): The file.
        key (str, optional): The entry to read. Defaults to None: 'model_ema',
            or 'model' where there is none, or the file is a state dict.

    Returns:
        tuple: The state dict with our keys, and meta: ``model``, the name of
        the model, and for a detector ``dataset_meta``.

    Raises:
        UserError: If it is not in that format.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get('state_dict')
    detector = isinstance(weights, dict) and is_official_detector(weights)
    if detector:
        state_dict = weights
    elif weights is not None:
        raise UserError(f"{path} holds state_dict: it is not in the authors' "
                        'format but in that of mmengine, and needs no '
                        'converting')
    elif key is None:
        keys = [k for k in ('model_ema', 'model') if k in checkpoint]
        # A file without either may be a state dict itself.
        state_dict = checkpoint[keys[0]] if keys else checkpoint
    elif key in checkpoint:
        state_dict = checkpoint[key]
    else:
        raise UserError(f'{path} holds no {key}, but '
                        f'{some(list(checkpoint))}')
    if not isinstance(state_dict, dict) or not any(
            isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError(f"{path} is not in the authors' format: it holds "
                        f'{some(list(checkpoint)) or "nothing"}, and neither '
                        'model_ema nor model with tensors')
    check_state_dict(state_dict, str(path))
    try:
        state_dict = from_authors(state_dict)
    except UserError as e:
        raise UserError(f"{path} is not in the authors' format: {e}") from e
    name = getattr(checkpoint.get('args'), 'model', None) or path.stem
    meta = dict(model=str(name))
    classes = checkpoint.get('meta', {}).get('CLASSES')
    if detector and classes:
        meta['dataset_meta'] = dict(classes=tuple(map(str, classes)))
    return state_dict, meta


def read_official(name: str) -> dict:
    """Read official weights as a checkpoint in our format.

    Args:
        name (str): ``vanillanet://vanillanet_6``, a published file that is
            downloaded once, into ``torch.hub``'s cache, or
            ``vanillanet:///any/file.pth``, a local file.

    Returns:
        dict: ``state_dict``, which is the averaged weights if the file has
        them, and ``meta``.

    Raises:
        UserError: If the name is not a published one, the file is in another
            format, or the download fails.
    """
    state_dict, meta = read_official_file(official_path(name))
    return dict(state_dict=state_dict, meta=dict(meta, source=name))


def official_path(name: str) -> Path:
    """Path of official weights, downloaded if they are not in the cache.

    Raises:
        UserError: If the name is not a published one or the download fails.
    """
    name = name.removeprefix(SCHEME)
    if name.startswith('/'):
        return Path(name)
    if name not in PUBLISHED:
        raise UserError(
            f'vanillanet://{name} is not known; there are '
            f'{", ".join(PUBLISHED)}, and vanillanet:///path/to/file.pth')
    return download(f'{URL}{name}.pth', hub_folder() / f'{name}.pth')
