# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Load checkpoints by name; replace mmengine's loaders by safe ones."""
from pathlib import Path

from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..utils.errors import UserError
from .download import cache_path, download
from .hub import SCHEME, official_path, read_official
from .safe_load import read_checkpoint
from .validate import check_state_dict

# Every scheme that mmengine registers a loader for.
MMENGINE_SCHEMES = [
    '', 'http://', 'https://', 'modelzoo://', 'torchvision://',
    'open-mmlab://', 'openmmlab://', 'mmcls://', 'pavi://',
    r'(\S+\:)?s3://', r'(\S+\:)?petrel://'
]
ZOOS = {
    'modelzoo': get_torchvision_models,
    'torchvision': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models
}


def load_checkpoint(name: str | Path) -> dict:
    """Load a checkpoint by its path, its URL or its name.

    OpenMMLab's ``load_from``, ``init_cfg``, ``resume``, ``get_model`` and
    tools load every checkpoint with this function.

    Args:
        name (str | Path): A file, or a name with ``http(s)://``,
            ``vanillanet://``, or another scheme of mmengine.

    Returns:
        dict: The content of the file, tensors on the CPU. Texts of configs
        are removed, since mmengine would run them as Python.

    Raises:
        UserError: If it cannot be found, is not a checkpoint or is refused;
            see :func:`read_checkpoint` and :func:`check_state_dict`.
    """
    name = str(name)
    scheme, _, _ = name.partition('://')
    if scheme and scheme not in ('http', 'https', *ZOOS) and (
            not name.startswith(SCHEME)):
        try:
            with get_local_path(name) as path:
                content = read_checkpoint(path)
        except (KeyError, ValueError, ImportError) as e:
            raise UserError(f'cannot load {name}: mmengine has no backend for '
                            'it here; download the file and give its path'
                            ) from e
    elif name.startswith(SCHEME):
        content = read_official(name)
    else:
        content = read_checkpoint(local_path(name))
        if scheme == 'mmcls':
            weights = content.get('state_dict', content)
            content = dict(
                state_dict={
                    key[len('backbone.'):]: value
                    for key, value in weights.items()
                    if str(key).startswith('backbone.')
                })
    if 'state_dict' not in content and any(
            isinstance(content.get(key), dict)
            for key in ('model', 'model_ema')):
        raise UserError(
            f'{name} holds no state_dict but {", ".join(map(str, content))}; '
            'if it is an official file of VanillaNet, give it as '
            f'vanillanet://{local_path(name).absolute()}')
    check_state_dict(content.get('state_dict', content), name)
    if 'ema_state_dict' in content:
        check_state_dict(content['ema_state_dict'], name)
    _leave_out_configs(content)
    return content


def local_path(name: str | Path) -> Path:
    """Path of a checkpoint's file, downloaded if it is not in the cache.

    Args:
        name (str | Path): As in :func:`load_checkpoint`.

    Returns:
        Path: The file.

    Raises:
        UserError: If the name is not known or the download fails.
    """
    name = str(name)
    if name.startswith(SCHEME):
        return official_path(name)
    scheme, _, model = name.partition('://')
    if scheme in ZOOS:
        models = ZOOS[scheme]()
        if 'mmlab' in scheme:
            model = get_deprecated_model_names().get(model, model)
        if model not in models:
            raise UserError(f'{name} is not known to mmengine')
        name = models[model]
        if '://' not in name:
            return Path(_get_mmengine_home()) / name
    if not name.startswith(('http://', 'https://')):
        return Path(name)
    return download(name, cache_path(name))


def _leave_out_configs(content: dict) -> None:
    """Remove the texts that mmengine evaluates as Python.

    Its runner evaluates ``meta['config']`` when it resumes. Its inferencer
    evaluates ``runtime_info['cfg']`` and ``meta['cfg']`` if no config is
    given.
    """
    hub = content.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder in (content.get('meta'), info):
        if isinstance(holder, dict):
            holder.pop('config', None)
            holder.pop('cfg', None)


@CheckpointLoader.register_scheme(
    prefixes=[*MMENGINE_SCHEMES, SCHEME], force=True)
def load_from_checked_file(filename: str,
                           map_location: str | None = None) -> dict:
    """Load a checkpoint for mmengine, as :func:`load_checkpoint`.

    Args:
        filename (str): As in :func:`load_checkpoint`.
        map_location (str, optional): Ignored: the tensors are on the CPU, and
            mmengine copies them into models and optimizers.

    Returns:
        dict: The content of the file.
    """
    return load_checkpoint(filename)
