# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Read configs, build their models, find what their data are."""
import copy
import os.path as osp
import re
import traceback
from contextlib import suppress

from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    MODELS,
    OPTIMIZERS,
    DefaultScope,
    Registry,
)
from torch import nn

from .cfg_options import apply_cfg_options, arguments, nearest
from .errors import UserError
from .requirements import require
from .terminal import some

TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')
# Numbers that mmengine would not refuse before the first epoch.
LEAST = {
    'optim_wrapper.optimizer.lr': 0, 'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1
} | {f'{split}_dataloader.{name}': least for split in ('train', 'val', 'test')
     for name, least in (('batch_size', 1), ('num_workers', 0))}


def read_config(path: str, cfg_options: dict | None = None,
                allow_new_keys: bool = False) -> Config:
    """Read a config of any OpenMMLab toolbox, if that is installed."""
    if not osp.isfile(path):
        raise UserError(f'no config at {path}')
    try:
        cfg = Config.fromfile(path)
    except Exception as e:  # a config is a program: it may raise anything
        for name in TOOLBOXES[1:]:
            if isinstance(e, ImportError) and name in str(e):
                require(name)
        cause = e.__cause__ or e
        reason = str(cause).splitlines()[0] if str(cause) else 'no reason'
        raise UserError(f'cannot read {path} as a config: '
                        f'{type(cause).__name__}: {reason}') from e
    scope = scope_name(cfg)
    if scope in TOOLBOXES[1:]:
        require(scope)
    apply_cfg_options(cfg, cfg_options or {}, allow_new_keys)
    near = nearest(scope_name(cfg), TOOLBOXES, 0.9)
    if near not in ('', scope_name(cfg)):  # mmengine would go on without it
        raise UserError(f'{path}: default_scope is {scope_name(cfg)}; did you '
                        f'mean {near}?')
    for key, least in LEAST.items():
        value = cfg
        for name in key.split('.'):
            value = value.get(name) if isinstance(value, dict | Config) else 1
        whole = '' if key.endswith('.lr') else 'whole '
        if value is not None and (
                type(value) not in (int, float) or not value >= least
                or whole and type(value) is float):
            raise UserError(f'{path}: {key} must be a {whole}number of at '
                            f'least {least}, but got {value!r}')
    return cfg


def type_name(node) -> str:
    """Name of the class of a config node, or of its ``type``; '' if none."""
    if isinstance(node, dict):
        node = node.get('type', '')
    name = node if isinstance(node, str) else getattr(node, '__name__', '')
    return name.split('.')[-1]


def scope_name(cfg: Config) -> str:
    """The toolbox: of ``default_scope``, else the model's, else mmpretrain."""
    if cfg.get('default_scope'):
        return cfg.default_scope
    node = cfg.get('model')
    while isinstance(node, dict):
        kind = node.get('type')
        name = kind if isinstance(kind, str) else getattr(
            kind, '__module__', '')
        if name.split('.')[0] in TOOLBOXES:
            return name.split('.')[0]
        node = node.get('model')  # inside WithDeepTraining
    return TOOLBOXES[0]


def scope_of(cfg: Config):
    """A context with a config's toolbox as the default scope of registries."""
    return DefaultScope.overwrite_default_scope(scope_name(cfg))


def check_parts(cfg: Config, what: str, *names: str) -> None:
    """Refuse a config that lacks parts (as 'train_dataloader') of a task."""
    missing = [name for name in names if cfg.get(name) is None]
    if missing:
        raise UserError(f'{cfg.filename} has no {" and no ".join(missing)}, '
                        f'which {what} needs')


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, in eval mode, without loading weights."""
    check_parts(cfg, 'building it', 'model')
    with scope_of(cfg):
        model = copy.deepcopy(cfg.model)
        if cfg.get('data_preprocessor'):  # as mmengine's runner does
            model.setdefault('data_preprocessor',
                             copy.deepcopy(cfg.data_preprocessor))
        try:
            return MODELS.build(model).eval()
        except Exception as e:
            problem = build_error(e)
            if problem is None:
                raise
            raise UserError(f'{cfg.filename}: {problem}') from e


def build_error(error: Exception) -> str | None:
    """The sentence on an error of building a part of a config, else None."""
    frames, e = [], error
    while e:  # mmengine 0.10.7 raises an error again at each level
        frames += [frame for frame, _ in traceback.walk_tb(e.__traceback__)]
        e = e.__context__
    building = [x.f_locals for x in frames if x.f_code.co_name.startswith(
        ('build_', 'from_cfg')) and x.f_globals['__name__'].startswith(
            'mmengine.')]
    if not building or isinstance(error, OSError | UserError):
        return None
    # Parameters of mmengine's build functions.
    node, registry = (building[-1].get(x) for x in ('cfg', 'registry'))
    node = node if isinstance(node, dict) else {}
    if isinstance(node.get('optimizer'), dict):  # of an optimizer wrapper
        node = node['optimizer']
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            pass
    name, kind = type_name(node), node.get('type')
    if isinstance(kind, str) and registry is not None:
        with suppress(RuntimeError):  # of a name with a dot
            kind = registry.get(kind)
        if not callable(kind):
            return unknown_type(node['type'], registry)
    text = ' '.join(str(error.args[0] if error.args else '').split())
    found = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword "
                      r"argument '(\w+)'", text)
    known = arguments(kind or found[1]) if found else {}
    if known and (not name or found[2] in node):
        near = nearest(found[2], known)
        return f'{name or found[1]} has no argument {found[2]}: ' + (
            f'did you mean {near}?' if near else f'it has {some([*known], 9)}')
    return (f'cannot build {name or "the run"}: {type(error).__name__}: '
            f'{text}')


def unknown_type(kind: str, registry: Registry) -> str:
    """The sentence on a type that a registry does not hold."""
    root, scope = registry.parent or registry, kind.rpartition('.')[0]
    registry = root.children.get(scope, registry)
    near = nearest(kind.rpartition('.')[2],
                   {*registry.module_dict, *root.module_dict})
    if near in registry.module_dict and scope in root.children:
        near = f'{scope}.{near}'
    name = registry.name.replace('_', ' ')
    return (f'{kind} is not {"an" if name[0] in "aeiou" else "a"} {name}: ' +
            (f'did you mean {near}?' if near else
             'custom_imports must name the module that registers it'))


def image_channels(cfg: Config) -> int:
    """Number of image channels of a config's network; 3 if not given."""
    node = cfg.model.get('backbone') or cfg.model
    while isinstance(node.get('model'), dict):  # inside WithDeepTraining
        node = node['model'].get('backbone') or node['model']
    return node.get('in_channels', 3)


def unwrap_dataset(dataset: dict) -> dict:
    """The config of a data set without its wrappers, as RepeatDataset."""
    while 'dataset' in dataset and ('pipeline' not in dataset or type_name(
            dataset) == 'MultiImageMixDataset'):
        dataset = dataset['dataset']
    return dataset


def test_dataset(cfg: Config) -> dict:
    """A config's data set to test on, without wrappers; empty if none."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    return unwrap_dataset(loader.get('dataset') or {})


# Data sets whose layout is known: the end of the sentence about missing data.
LAYOUTS = dict.fromkeys(
    ('ImageNet', 'CustomDataset'),
    ', with one folder of images for each class') | dict.fromkeys(
        ('CocoDataset', 'ADE20KDataset', 'BaseSegDataset'), '')


def missing_data(dataset: dict) -> str | None:
    """A sentence on the missing files of a data set whose layout is known."""
    if dataset.get('dataset'):
        return missing_data(dataset['dataset'])
    if dataset.get('datasets'):
        return next(filter(None, map(missing_data, dataset['datasets'])), None)
    name = type_name(dataset)
    if name not in LAYOUTS:  # others may download theirs
        return None
    root = osp.expanduser(dataset.get('data_root') or '')
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img_path=prefixes)
    parts = [p for p in prefixes.values() if isinstance(p, str) and p]
    if dataset.get('ann_file'):
        parts.append(dataset['ann_file'])
    elif root and not parts and dataset.get('split'):
        parts.append(dataset['split'])
    # Files on a server are not checked.
    paths = [osp.join(root, part) for part in parts] or [root]
    if all(osp.exists(path) for path in paths if path and '://' not in path):
        return None
    return (f'no data for {name}: looked for the folder {root or "."}, which '
            f'must hold {" and ".join(parts) or "the images"}{LAYOUTS[name]}')


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise UserError if files of a config's data loaders are missing."""
    for loader in loaders:
        if cfg.get(loader) and isinstance(cfg[loader].get('dataset'), dict):
            problem = missing_data(cfg[loader].dataset)
            if problem:
                raise UserError(f'{problem}; a folder of your own is given by '
                                '--data')


def class_names(cfg: Config, meta: dict) -> list[str]:
    """The classes of a checkpoint's ``meta``, else of the config's data."""
    trained = meta.get('dataset_meta') or meta
    names = trained.get('classes') or trained.get('CLASSES')
    for split in ('val', 'test', 'train'):
        loader = cfg.get(f'{split}_dataloader') or {}
        dataset = unwrap_dataset(loader.get('dataset') or {})
        if names or not dataset:
            continue
        kind = dataset.get('type')
        if isinstance(kind, str):  # not the class itself, as in new configs
            with DATASETS.switch_scope_and_registry(scope_name(cfg)) as found:
                kind = found.get(kind)
        names = (dataset.get('metainfo') or {}).get('classes') or (
            getattr(kind, 'METAINFO', {}).get('classes'))
        head = cfg.model.get('head') or {}
        if names and head.get('num_classes', len(names)) != len(names):
            return []  # those of a data set that it was not trained on
    return [str(name) for name in names or ()]
