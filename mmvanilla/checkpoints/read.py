# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Read checkpoints without running code that they hold, and load them."""
import os
import re
import zipfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader, checkpoint
from torch import nn

from ..utils.errors import UserError
from ..utils.terminal import some
from .constructors import ALLOWED, NAMES
from .official import official_prefix

UNREADABLE = ('is not a checkpoint that torch reads safely, or is cut short '
              'or damaged')


@contextmanager
def _allowed_names() -> Iterator[None]:
    """Let torch's safe reader use the names in ``ALLOWED``."""
    known = torch.serialization.get_safe_globals()
    # Which of two entries of a name torch calls is left to chance.
    others = [
        entry for entry in known if entry not in ALLOWED and
        (entry[1] if isinstance(entry, tuple) else
         f'{entry.__module__}.{entry.__qualname__}') in NAMES
    ]
    with torch.serialization.safe_globals(others):
        pass  # leaving it removes them
    try:
        with torch.serialization.safe_globals(
            [entry for entry in ALLOWED if entry not in known]):
            yield
    finally:
        torch.serialization.add_safe_globals(others)


@contextmanager
def _entries(mapping: MutableMapping, **values) -> Iterator[None]:
    """Set entries of a mapping, and restore them at the end."""
    before = {key: mapping[key] for key in values if key in mapping}
    mapping.update(values)
    try:
        yield
    finally:
        for key in values:
            mapping.pop(key, None)
        mapping.update(before)


@contextmanager
def safe_reading(source: str = 'a checkpoint') -> Iterator[None]:
    """Make torch and mmengine read checkpoints without running their code.

    Inside this context every ``torch.load`` of the process, and with it each
    of mmengine's loaders, reads with ``weights_only=True``, also where the
    caller asks for False. All is as before at its end.

    Args:
        source (str): What is read, for errors. Defaults to 'a checkpoint'.

    Raises:
        UserError: If a checkpoint is refused, missing, damaged or cannot be
            downloaded.
    """
    # OneDL's mmengine adds the real ``getattr`` and ``numpy.ndarray`` to the
    # names, with which a checkpoint can run code.
    with _allowed_names(), _entries(
            vars(checkpoint), get_torch_safe_globals=list), _entries(
                os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD='1',
                TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='0'):
        try:
            yield
        except Exception as e:
            problem = _problem(e)
            if problem is None:
                raise
            raise UserError(f'{source} {problem}') from e


def _problem(error: Exception) -> str | None:
    """What an error of torch's or mmengine's readers means, if it is one."""
    text = str(error)
    if isinstance(error, UnpicklingError):
        name = re.search(r'GLOBAL (\S+)', text)
        if name:
            name = name[1].encode('ascii', 'backslashreplace').decode()
            return (f'is refused: it asks for {name[:100]}, which may run '
                    'code; if you trust the file, save its weights with '
                    "torch.save(torch.load(PATH, weights_only=False)"
                    "['state_dict'], NEW) and give NEW")
    elif isinstance(error, URLError):
        return f'cannot be downloaded: {error}'
    elif isinstance(error, FileNotFoundError) and text.endswith(
            'can not be found.'):  # as mmengine says
        return f'cannot be read: {text}'
    elif not isinstance(error, RuntimeError) or (
            'PytorchStreamReader' not in text and 'weights_only' not in text):
        return None
    return UNREADABLE


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint file without running code that it holds.

    Args:
        path (str | Path): The file.

    Returns:
        dict: The content of the file, tensors on the CPU. They are read from
        the file when they are used, where its format allows.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, is
            damaged, or holds objects that a checkpoint of mmengine does not.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'cannot read {path}: there is no such file')
    try:
        mmap = zipfile.is_zipfile(path)
        if mmap:
            with zipfile.ZipFile(path) as archive:
                mmap = not any(x.compress_type for x in archive.infolist())
        with _allowed_names():
            content = torch.load(
                path, map_location='cpu', weights_only=True, mmap=mmap)
    except PermissionError as e:
        raise UserError(f'cannot read {path}: {e.strerror}') from e
    except Exception as e:  # torch's reader may raise any
        raise UserError(f'{path} {_problem(e) or UNREADABLE}') from e
    return _checked(content, str(path))


def _checked(content, source: str) -> dict:
    if not isinstance(content, dict):
        raise UserError(f'{source} is not a checkpoint: it holds a '
                        f'{type(content).__name__}, not a dict')
    return content


def load_checkpoint(name: str | Path) -> dict:
    """Load a checkpoint by its path, URL or name, without running its code.

    Args:
        name (str | Path): A file, or any name that mmengine's
            ``CheckpointLoader`` knows, as ``https://``, ``torchvision://``
            and ``vanillanet://``.

    Returns:
        dict: The content of the file, tensors on the CPU, without the texts
        of :func:`leave_out_configs`.

    Raises:
        UserError: If it cannot be found, downloaded or read, is refused, or
            has the keys of VanillaNet's authors without ``vanillanet://``.
    """
    name = str(name)
    file = '/path/to/the/downloaded/file'
    if '://' not in name:
        content = read_checkpoint(name)
        file = Path(name).expanduser().absolute()
    else:
        try:
            with safe_reading(name):
                content = CheckpointLoader.load_checkpoint(
                    name, map_location='cpu', logger='silent')
        except UserError:
            raise
        except Exception as e:  # of any loader that is registered
            text = ' '.join(f'{type(e).__name__}: {e}'.split())
            raise UserError(f'cannot load {name}: {text[:300]}') from e
        content = _checked(content, name)
    for key in ('model_ema', 'model', 'state_dict', None):
        weights = content.get(key) if key else content
        if official_prefix(weights) is not None:
            raise UserError(f'{name} holds official weights with the keys of '
                            f'their authors: give it as vanillanet://{file}')
    leave_out_configs(content)
    return content


def leave_out_configs(checkpoint: dict) -> None:
    """Remove the texts that mmengine would run as Python, in place.

    Its runner evaluates ``meta['config']`` when it resumes. Its inferencers
    evaluate ``meta['cfg']`` or ``runtime_info['cfg']`` without a config.

    Args:
        checkpoint (dict): The content of a checkpoint.
    """
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder in (checkpoint.get('meta'), info):
        if isinstance(holder, dict):
            holder.pop('config', None)
            holder.pop('cfg', None)


def load_weights(model: nn.Module, name: str | Path) -> dict:
    """Load a checkpoint's weights into a model, in place and strictly.

    Args:
        model (nn.Module): The model.
        name (str | Path): As in :func:`load_checkpoint`.

    Returns:
        dict: The checkpoint's ``meta``, empty if it has none.

    Raises:
        UserError: If it cannot be read or does not fit the model.
    """
    content = load_checkpoint(name)
    load_state_dict(model, content.get('state_dict', content), str(name))
    meta = content.get('meta')
    return meta if isinstance(meta, dict) else {}


def load_state_dict(model: nn.Module, state_dict: dict, source: str) -> None:
    """Load a state dict into a model, in place and strictly.

    Lambda and counters of batches may be missing: lambda is then 1. Layers
    may merge an earlier form while they load, so the keys can only be checked
    by loading them.

    Args:
        model (nn.Module): The model.
        state_dict (dict): Its weights.
        source (str): Where they come from, for the error.

    Raises:
        UserError: If keys are missing, unexpected or mismatched; names the
            first few. Some of the weights may have been loaded then.
    """
    if not isinstance(state_dict, dict) or not state_dict or not all(
            isinstance(key, str) for key in state_dict):
        raise UserError(f'{source} holds no weights')
    if 'module' not in dict(model.named_children()) and all(
            key.startswith('module.') for key in state_dict):
        # Wrappers such as DDP add this prefix.
        state_dict = {k[len('module.'):]: v for k, v in state_dict.items()}
    try:
        found = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as e:  # an entry has another shape
        problems = [' '.join(x.split()) for x in str(e).splitlines()]
        problems = problems[1:] or problems
    else:
        problems = [
            f'{key} {problem}' for keys, problem in (
                (found.missing_keys, 'is missing'),
                (found.unexpected_keys, 'is not in the model'))
            for key in keys
            if not key.endswith(('.lam', '.num_batches_tracked'))
        ]
    if problems:
        raise UserError(f'{source} does not fit the config: {some(problems)}')
