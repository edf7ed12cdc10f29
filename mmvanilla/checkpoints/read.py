# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Read checkpoints without running code that they hold, and load them."""
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader, checkpoint
from torch import nn

from ..layers.loading import describe
from ..utils.errors import UserError
from ..utils.files import is_exported
from .constructors import ALLOWED, NAMES

UNREADABLE = ('is not a checkpoint that torch reads safely, or is cut short '
              'or damaged')


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
    known = torch.serialization.get_safe_globals()
    # Which of two entries of a name torch calls is left to chance.
    others = [x for x in known if x not in ALLOWED and (
        x[1] if isinstance(x, tuple) else f'{x.__module__}.{x.__qualname__}'
    ) in NAMES]
    with torch.serialization.safe_globals(others):
        pass  # leaving it removes them
    settings = [
        # OneDL's mmengine adds the real ``getattr`` and ``numpy.ndarray`` to
        # the names, with which a checkpoint can run code.
        (vars(checkpoint), 'get_torch_safe_globals', list),
        (os.environ, 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1'),
        (os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0')
    ]
    before = [mapping.get(key) for mapping, key, _ in settings]
    for mapping, key, value in settings:
        mapping[key] = value
    try:
        with torch.serialization.safe_globals(
            [x for x in ALLOWED if x not in known]):
            yield
    except Exception as e:
        problem = _problem(e)
        if problem is None:
            raise
        raise UserError(f'{source} {problem}') from e
    finally:
        for (mapping, key, _), value in zip(settings, before):
            del mapping[key]
            if value is not None:
                mapping[key] = value
        torch.serialization.add_safe_globals(others)


def _problem(error: Exception) -> str | None:
    """What an error of torch's or mmengine's readers means, if it is one."""
    text = str(error)
    if isinstance(error, UnpicklingError):
        name = re.search(r'GLOBAL (\S+)', text)
        if name:
            return (f'is refused: it asks for {ascii(name[1])[1:-1]:.100}, '
                    'which may run code; if you trust the file, save its '
                    'weights with torch.save(torch.load(PATH, weights_only='
                    "False)['state_dict'], NEW) and give NEW")
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
        dict: The content of the file, tensors on the CPU.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, is
            damaged, or holds objects that a checkpoint of mmengine does not.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'cannot read {path}: there is no such file')
    if is_exported(path):
        raise UserError(
            f'{path} is an exported file, not a checkpoint: tools/test.py '
            'takes it in place of one, mmvanilla-predict without a config')
    try:
        with safe_reading(str(path)):
            _check_bytes(path)
            # Not with mmap, which crashes where the file is written again.
            content = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except PermissionError as e:
        raise UserError(f'cannot read {path}: {e.strerror}') from e
    except Exception as e:  # torch's reader may raise any
        raise UserError(f'{path} {UNREADABLE}') from e
    return _checked(content, str(path))


def _check_bytes(path: Path) -> None:
    """Compare the file with its checksums, which torch does not read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # torch may save without checksums: all of them are 0 then.
            if sum(x.file_size for x in records) > path.stat().st_size or (
                    any(x.CRC for x in records) and archive.testzip()):
                raise UnpicklingError('the bytes are not those of its records')


def official_prefix(state_dict) -> str | None:
    """The prefix of the authors' keys in a state dict, None without them."""
    if isinstance(state_dict, dict):
        for prefix in ('', 'module.', 'backbone.'):
            act, *stems = (f'{prefix}{name}.weight' for name in (
                'stages.0.act', 'stem.0', 'stem1.0'))
            if act in state_dict and any(x in state_dict for x in stems):
                return prefix
    return None


def check_content(content: dict, name: str, file: str | Path) -> None:
    """Refuse what is no checkpoint, or has the keys of the authors."""
    _checked(content, name)
    parts = map(content.get, ('model_ema', 'model', 'state_dict'))
    if any(official_prefix(x) is not None for x in (content, *parts)):
        raise UserError(f'{name} holds official weights with the keys of '
                        f'their authors: give it as vanillanet://{file}')


def _checked(content, source: str) -> dict:
    if not isinstance(content, dict):
        raise UserError(f'{source} is not a checkpoint: it holds a '
                        f'{type(content).__name__}, not a dict')
    return content


def check_weights(state_dict, source: str) -> None:
    """Refuse what is no state dict with tensors."""
    entries = state_dict.items() if isinstance(state_dict, dict) else ()
    wrong = [f': {" ".join(str(key).split()):.100} is of type '
             f'{type(value).__name__}' for key, value in entries
             if not isinstance(key, str) or not (
                 torch.is_tensor(value) or key.endswith('_extra_state'))]
    if not entries or wrong:
        raise UserError(f'{source} holds no weights{"".join(wrong[:1])}')


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
    if '://' not in name:
        content = read_checkpoint(name)
        file = Path(name).expanduser().absolute()
    else:
        file = '/path/to/the/downloaded/file'
        try:
            with safe_reading(name):
                content = CheckpointLoader.load_checkpoint(
                    name, map_location='cpu', logger='silent')
        except UserError:
            raise
        except Exception as e:  # of any loader that is registered
            text = ' '.join(f'{type(e).__name__}: {e}'.split())
            raise UserError(f'cannot load {name}: {text[:300]}') from e
    check_content(content, name, file)
    if not isinstance(content.get('meta', {}), dict):
        content['meta'] = {}
    leave_out_configs(content)
    return content


def leave_out_configs(checkpoint: dict) -> None:
    """Remove the configs, which mmengine would run as Python, in place.

    Args:
        checkpoint (dict): The content of a checkpoint.
    """
    # Its runner evaluates meta['config'] when it resumes, its inferencers
    # meta['cfg'] or runtime_info['cfg'] when they have no config.
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
    return content.get('meta', {})


def load_state_dict(model: nn.Module, state_dict: dict, source: str,
                    start: bool = False) -> str:
    """Load a state dict into a model, in place and strictly.

    Lambda and counters of batches may be missing: lambda is then 1.

    Args:
        model (nn.Module): The model.
        state_dict (dict): Its weights.
        source (str): Where they come from, for the error.
        start (bool): Whether training starts from them: heads for other
            numbers of classes, and series activations of which they have
            none, keep their initial weights. Defaults to False.

    Returns:
        str: What is left out of them; '' without ``start``.

    Raises:
        UserError: If keys are missing, unexpected or mismatched; names the
            first of each. Some of the weights may have been loaded then.
    """
    check_weights(state_dict, source)
    if 'module' not in dict(model.named_children()) and all(
            key.startswith('module.') for key in state_dict):
        # Wrappers such as DDP add this prefix.
        state_dict = {k[len('module.'):]: v for k, v in state_dict.items()}
    found = []  # keys that are missing and unexpected, errors of others
    hook = model.register_load_state_dict_pre_hook(
        lambda *args: found.extend(args[-3:]))
    try:
        # Layers may merge an earlier form while they load.
        model.load_state_dict(state_dict, strict=False)
    except RuntimeError as e:
        found[-1] = found[-1] or [str(e)]
    finally:
        hook.remove()
    misfits, left_out = describe(model, *found, 'head' if start else None)
    if misfits and start and 'backbone.' not in misfits and any(
            key.startswith('backbone.') for key in state_dict):
        misfits += ('; to start from its backbone only, set model.backbone.'
                    "init_cfg to dict(type='Pretrained', checkpoint=..., "
                    "prefix='backbone.') instead of load_from")
    if re.search(r'head\S* has the shape', misfits):
        misfits += ('; if it was trained with --data, give the same folder, '
                    'or the config in its work dir')
    if misfits:
        raise UserError(f'{source} does not fit the config: {misfits}')
    return left_out
