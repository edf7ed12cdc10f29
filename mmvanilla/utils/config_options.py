# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checked overrides of a config from the command line."""
import difflib
import inspect
from contextlib import suppress
from importlib import import_module

import mmengine.registry
from mmengine.config import Config, ConfigDict
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch.utils.data import DataLoader

from .errors import UserError

TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')
# Keys that nodes of a config may have besides the arguments of the class that
# they build. '' is the config itself.
KEYS = {
    '': 'activation_checkpointing compile custom_imports'
        ' efficient_conv_bn_eval find_unused_parameters model_wrapper_cfg'
        ' runner_type strategy sync_bn tta_model tta_pipeline',
    'auto_scale_lr': 'base_batch_size enable rule',
    'dataloader': 'batch_sampler collate_fn dataset num_batch_per_epoch'
                  ' sampler worker_init_fn',
    'env_cfg': 'cudnn_benchmark dist_cfg mp_cfg resource_limit',
    'optim_wrapper': 'constructor paramwise_cfg',
    'paramwise_cfg': 'bias_decay_mult bias_lr_mult bypass_duplicate'
                     ' custom_keys dcn_offset_lr_mult decay_rate'
                     ' dwconv_decay_mult flat_decay_mult layer_decay_rate'
                     ' norm_decay_mult num_layers',
}
# Classes that nodes without a type build.
BUILDS = {
    '': [Runner],
    'dataloader': [DataLoader],
    'log_processor': [LogProcessor],
    'optim_wrapper': [AmpOptimWrapper],
    'randomness': [Runner.set_randomness],
    'test_cfg': [TestLoop],
    'train_cfg': [EpochBasedTrainLoop, IterBasedTrainLoop],
    'val_cfg': [ValLoop],
}


def type_name(node) -> str:
    """Name of the class that a config node builds, without its scope.

    Args:
        node (dict | str | type): A node with ``type``, or its ``type``, which
            is a class in new-style configs.

    Returns:
        str: The name; '' if the node has no ``type``.
    """
    if isinstance(node, dict):
        node = node.get('type', '')
    name = node if isinstance(node, str) else getattr(node, '__name__', '')
    return name.split('.')[-1]


def scope_name(cfg: Config) -> str:
    """The toolbox that a config is for: the scope of its types.

    Args:
        cfg (Config): A config of any toolbox.

    Returns:
        str: ``default_scope``. Without one, as in mmdet's new-style configs,
        where types are classes, the toolbox that the model's type is of; else
        'mmpretrain'.
    """
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


def check_parts(cfg: Config, what: str, *names: str) -> None:
    """Refuse a config that lacks a part.

    Args:
        cfg (Config): A config.
        what (str): What needs the parts, for the error.
        *names (str): Keys of the config, as 'train_dataloader'.

    Raises:
        UserError: If one of them is missing or None.
    """
    missing = [name for name in names if cfg.get(name) is None]
    if missing:
        raise UserError(f'{cfg.filename} has no {" and no ".join(missing)}, '
                        f'which {what} needs')


def apply_cfg_options(cfg: Config,
                      options: dict,
                      allow_new_keys: bool = False) -> None:
    """Merge overrides into a config, in place.

    Args:
        cfg (Config): The config.
        options (dict): Values by dotted keys, from ``--cfg-options``.
        allow_new_keys (bool): Whether a key may be one that is neither in
            the config nor an argument of the class that its node builds.
            Defaults to False.

    Raises:
        UserError: If a key is not known, with the nearest known one, or
            cannot be set.
    """
    # Types first: a node's type determines its arguments.
    for key in sorted(options, key=lambda k: not k.endswith('type')):
        if not allow_new_keys:
            _check(cfg, key)
        try:
            cfg.merge_from_dict({key: options[key]})
        except (AssertionError, IndexError, KeyError, TypeError) as e:
            raise UserError(
                f'cannot apply --cfg-options {key}: {e}') from e


def _check(cfg: Config, key: str) -> None:
    scope = scope_name(cfg)
    node, parts = cfg._cfg_dict, key.split('.')
    for i, part in enumerate(parts):
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f'--cfg-options {key}: '
                                f'{".".join(parts[:i])} is a list of '
                                f'{len(node)}, so {part} is no entry of it')
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            return
        if part not in node:
            known = {str(k) for k in node} | _arguments(
                node, parts[:i], scope)
            if part in known:
                return
            near = difflib.get_close_matches(part, sorted(known), 1, 0.5)
            hint = '.'.join(parts[:i] + near)
            raise UserError(
                f'--cfg-options {key}: the config has no '
                f'{".".join(parts[:i + 1])}' +
                (f'; did you mean {hint}?' if near else '') +
                ' (--allow-new-keys adds a new key)')
        node = node[part]


def _arguments(node: ConfigDict, path: list[str], scope: str) -> set[str]:
    """Keys that a node may have besides those that it has."""
    key = path[-1] if path else ''
    key = 'dataloader' if key.endswith('_dataloader') else key
    names = {'type', '_scope_', '_delete_', *KEYS.get(key, '').split()}
    classes = list(BUILDS.get(key, []))
    kind = node.get('type')
    if isinstance(kind, str):
        with suppress(ImportError):
            import_module(f'{scope}.registry')
        for root in vars(mmengine.registry).values():
            if isinstance(root, Registry):
                classes.append(root.children.get(scope, root).get(kind))
    elif kind is not None:
        classes.append(kind)
    if kind is not None:
        names |= {'init_cfg', 'priority'}
    for cls in filter(None, classes):
        functions = [vars(base).get('__init__') for base in inspect.getmro(
            cls)] if inspect.isclass(cls) else [cls]
        for function in filter(inspect.isfunction, functions):
            names |= set(inspect.signature(function).parameters)
    return names - {'self', 'args', 'kwargs'}
