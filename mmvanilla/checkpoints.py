# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checkpoints: read safely, and those of the authors of VanillaNet as ours."""
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from mmengine import Config
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ImageClassifier
from torch import Tensor

from .errors import UserError
from .files import check_writable, replace_atomically, sha256
from .models import VanillaNet
from .version import __version__
from .zoo import root

# --------------------------------------------------------- reading safely

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


# ------------------------------------------------- two languages of names

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

# Each row names one module: ours, the authors' in train form, the authors'
# in deploy form. Both directions read this table and nothing else.
MODULES = [
    ('backbone.stem.conv.conv1', 'stem1.0', None),
    ('backbone.stem.conv.norm1', 'stem1.1', None),
    ('backbone.stem.conv.conv2', 'stem2.0', None),
    ('backbone.stem.conv.norm2', 'stem2.1', None),
    ('backbone.stem.conv', None, 'stem.0'),
    ('backbone.stem.act', 'stem2.2', 'stem.1'),
    ('backbone.stem.act.norm', 'stem2.2.bn', None),
    ('backbone.stages.{}.conv.conv1', 'stages.{}.conv1.0', None),
    ('backbone.stages.{}.conv.norm1', 'stages.{}.conv1.1', None),
    ('backbone.stages.{}.conv.conv2', 'stages.{}.conv2.0', None),
    ('backbone.stages.{}.conv.norm2', 'stages.{}.conv2.1', None),
    ('backbone.stages.{}.conv', None, 'stages.{}.conv'),
    ('backbone.stages.{}.act', 'stages.{}.act', 'stages.{}.act'),
    ('backbone.stages.{}.act.norm', 'stages.{}.act.bn', None),
    ('head.classifier.conv1', 'cls1.2', None),
    ('head.classifier.norm1', 'cls1.3', None),
    ('head.classifier.conv2', 'cls2.0', None),
    ('head.classifier', None, 'cls.2'),
]


def _rename(state_dict: dict[str, Tensor],
            names: dict[str, str]) -> dict[str, Tensor]:
    """Rename the modules of a state dict's entries, in the same order."""
    renamed, unknown = OrderedDict(), []
    for key, value in state_dict.items():
        module, _, entry = key.rpartition('.')
        stage = re.search(r'stages\.(\d+)\.', module)
        if stage:
            module = module.replace(stage[0], 'stages.{}.', 1)
        if module in names:
            name = names[module]
            name = name.format(stage[1]) if stage else name
            renamed[f'{name}.{entry}'] = value
        else:
            unknown.append(key)
    if unknown:
        raise UserError(f'these are not the entries of a VanillaNet: '
                        f'{_some(unknown)}')
    return renamed


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(map(str, names[:3])) + more


def from_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the entries of the authors' state dict our names.

    Args:
        state_dict (dict): Theirs, in train or deploy form, with or without
            the prefix ``module.``.

    Returns:
        dict: Ours, for an ``ImageClassifier``. In train form it has lambda
        too, which is 1: their network is trained to its end, and their format
        has no place for it.

    Raises:
        UserError: If it has other entries, or lacks some.
    """
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {k[len('module.'):]: v for k, v in state_dict.items()}
    form = 2 if 'stem.0.weight' in state_dict else 1
    names = {row[form]: row[0] for row in MODULES if row[form]}
    ours = _rename(state_dict, names)
    for key in list(ours):
        if key.endswith('.conv1.weight'):
            lam = key.replace('.conv1.weight', '.act.lam')
            ours[lam] = torch.tensor(1.0, dtype=torch.float64)
    describe(ours)
    return ours


def to_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the entries of our state dict the authors' names.

    Args:
        state_dict (dict): Ours, of an ``ImageClassifier``, in train or deploy
            form.

    Returns:
        dict: Theirs, in the same form.

    Raises:
        UserError: If it has other entries or lacks some, or if lambda is not
            1, which their format cannot tell.
    """
    describe(state_dict)
    tensors = OrderedDict()
    for key, value in state_dict.items():
        if not key.endswith('.act.lam'):
            tensors[key] = value
        elif value != 1:
            raise UserError(f"{key} is {float(value):g}, and the authors' "
                            'format can only tell a network whose lambda is 1')
    form = 2 if 'backbone.stem.conv.weight' in state_dict else 1
    names = {row[0]: row[form] for row in MODULES if row[form]}
    return _rename(tensors, names)


def describe(state_dict: dict[str, Tensor]) -> dict:
    """Read off a state dict of ours what network it is of.

    The strides are not in the tensors. A stage has stride 2 where the width
    grows and 1 where it does not, which holds for all published variants.
    Adaptive pooling leaves no trace at all: '13-x1.5' may be '13-x1.5-ada'.

    Args:
        state_dict (dict): Of an ``ImageClassifier``, in train or deploy form.

    Returns:
        dict: Config of the ``ImageClassifier``. ``arch`` is the name of the
        published variant, or a dict where it is none.

    Raises:
        UserError: If it is not the state dict of a VanillaNet, entry by entry
            and shape by shape; names the first few that are not.
    """
    deploy = 'backbone.stem.conv.weight' in state_dict
    last = 'weight' if deploy else 'conv2.weight'
    first = 'weight' if deploy else 'conv1.weight'
    try:
        dims = [state_dict[f'backbone.stem.conv.{last}'].shape[0]]
        while f'backbone.stages.{len(dims) - 1}.conv.{last}' in state_dict:
            conv = f'backbone.stages.{len(dims) - 1}.conv.{last}'
            dims.append(state_dict[conv].shape[0])
        series = state_dict['backbone.stem.act.weight'].shape[-1]
        in_channels = state_dict[f'backbone.stem.conv.{first}'].shape[1]
        num_classes = state_dict[f'head.classifier.{last}'].shape[0]
    except KeyError as e:
        raise UserError(f'the entry {e} of a VanillaNet is not there, but '
                        f'{_some(list(state_dict))}') from e
    strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
    arch = dict(dims=dims, strides=strides)
    for name, setting in VanillaNet.arch_settings.items():
        if list(setting['dims']) == dims:
            arch = name
            break

    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='VanillaNet',
            arch=arch,
            in_channels=in_channels,
            act_num=series // 2,
            deploy=deploy),
        head=dict(
            type='VanillaNetHead',
            num_classes=num_classes,
            in_channels=dims[-1],
            deploy=deploy))
    with torch.device('meta'):
        wanted = ImageClassifier(model['backbone'],
                                 head=model['head']).state_dict()
    wrong = [
        key for key in {**wanted, **state_dict}
        if key not in wanted or key not in state_dict
        or wanted[key].shape != state_dict[key].shape
    ]
    # A checkpoint without lambda loads as lambda 1.
    wrong = [key for key in wrong if not key.endswith('.act.lam')]
    if wrong:
        raise UserError('these entries do not make a VanillaNet, being '
                        'missing, too many or of another shape: '
                        f'{_some(wrong)}')
    return model


# ---------------------------------------------------------------- files


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


def convert(src: str | Path,
            dst: str | Path,
            to: str = 'mmvanilla',
            key: str | None = None) -> str:
    """Convert a checkpoint file between the authors' format and ours.

    Beside ``dst`` it writes a config with the same name that builds the
    network, with ImageNet's test pipeline, and loads the file. There and back
    the weights are bit-identical.

    Args:
        src (str | Path): The file to read.
        dst (str | Path): The file to write.
        to (str): 'mmvanilla' or 'authors'. Defaults to 'mmvanilla'.
        key (str, optional): The entry of the authors' file that is read or
            written. Defaults to None: reads 'model_ema', or 'model' where
            there is none, and writes 'model'.

    Returns:
        str: What was converted, in some lines.

    Raises:
        UserError: If ``src`` cannot be read or is in another format, or
            ``dst`` cannot be written; neither file is left then.
    """
    src, dst = Path(src), Path(dst)
    config = dst.with_suffix('.py')
    if dst.resolve() in (src.resolve(), config.resolve()):
        raise UserError(f'cannot write to {dst}: it is the file to read, or '
                        'the name of the config that is written beside')
    check_writable(dst)
    if to == 'authors':
        state_dict, name = read_checkpoint(src).get('state_dict'), src.stem
        if state_dict is None:
            raise UserError(f'{src} holds no state_dict: it is not a '
                            'checkpoint of mmvanilla')
        try:
            model = describe(state_dict)
            checkpoint = {key or 'model': to_authors(state_dict)}
        except UserError as e:
            raise UserError(f'cannot convert {src}: {e}') from e
        load_from = f'vanillanet://{dst.resolve()}'
    else:
        state_dict, name = _read_authors(src, key)
        model = describe(state_dict)
        meta = dict(
            source=src.name,
            source_sha256=sha256(src),
            mmvanilla_version=__version__)
        checkpoint = dict(state_dict=state_dict, meta=meta)
        load_from = str(dst.resolve())

    notes = _settle_arch(model, f'{name} {src.stem}')
    with replace_atomically(dst) as weights, replace_atomically(config) as py:
        torch.save(checkpoint, weights)
        _test_config(model, load_from).dump(py)
    backbone = model['backbone']
    return '\n'.join([
        f'{src} -> {dst} and {config}',
        f'VanillaNet {backbone["arch"]}, '
        f'{"deploy" if backbone["deploy"] else "train"} form, '
        f'n = {backbone["act_num"]}, '
        f'{model["head"]["num_classes"]} classes', *notes
    ])


def _settle_arch(model: dict, name: str) -> list[str]:
    """Settle what tensors cannot tell by names, and say what is left open."""
    arch = model['backbone']['arch']
    if isinstance(arch, dict):
        return [
            'Not the widths of a published variant: stride 2 is taken where '
            'the width grows, and no adaptive pooling. Correct arch in the '
            'config if the network was another.'
        ]
    if arch == '13-x1.5' and 'ada' in name:
        model['backbone']['arch'] = '13-x1.5-ada'
    elif arch == '13-x1.5' and 'x1_5' not in name:
        return [
            'The tensors of 13-x1.5 and of 13-x1.5-ada are alike, and neither '
            'the file nor its args name one: 13-x1.5 is taken. Correct arch '
            'in the config if the network was the other.'
        ]
    return []


def _test_config(model: dict, load_from: str) -> Config:
    """Config that tests a model on ImageNet."""
    base = root() / 'configs' / '_base_'
    config = Config.fromfile(base / 'default_runtime.py')
    data = Config.fromfile(base / 'datasets' / 'imagenet.py')
    config.data_preprocessor = dict(
        data.data_preprocessor, num_classes=model['head']['num_classes'])
    config.model = model
    config.test_dataloader = data.test_dataloader
    config.test_evaluator = data.test_evaluator
    config.test_cfg = dict()
    config.load_from = load_from
    return config
