# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Read configs and build their models."""
import copy
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .config_options import (
    apply_cfg_options,
    check_parts,
    scope_name,
)
from .errors import UserError
from .requirements import require
from .terminal import import_toolbox

# Toolboxes whose packages are optional.
SCOPES = ('mmdet', 'mmseg')


def read_config(path: str,
                cfg_options: dict | None = None,
                allow_new_keys: bool = False) -> Config:
    """Read a config of any OpenMMLab toolbox.

    Args:
        path (str): The config file.
        cfg_options (dict, optional): Values by dotted keys that replace
            those of the file, from ``--cfg-options``. Defaults to None.
        allow_new_keys (bool): Whether these may add unknown keys. Defaults
            to False.

    Returns:
        Config: The config, with the options applied.

    Raises:
        UserError: If there is no such file, it is not a config, an option
            has an unknown key, or the config's toolbox is not installed.
    """
    if not osp.isfile(path):
        raise UserError(f'no config at {path}')
    try:
        cfg = Config.fromfile(path)
    except Exception as e:  # a config is a program: it may raise anything
        for name in SCOPES:
            if isinstance(e, ImportError) and name in str(e):
                require(name)
        cause = e.__cause__ or e
        reason = str(cause).splitlines()[0] if str(cause) else 'no reason'
        raise UserError(f'cannot read {path} as a config: '
                        f'{type(cause).__name__}: {reason}') from e
    scope = scope_name(cfg)
    if scope in SCOPES:
        require(scope)
        import_toolbox(scope)
    if cfg_options:
        apply_cfg_options(cfg, cfg_options, allow_new_keys)
    return cfg


def config_files(cfg: Config) -> list[str]:
    """The files of a config: its own and all that it inherits from."""
    # `cfg.text` holds the path of each file as a line before its content. In
    # mmengine's new style, where bases are imported, it does not.
    files = [line for line in cfg.text.splitlines() if osp.isfile(line)]
    todo = [cfg.filename] if cfg.filename else []
    while todo:
        path = todo.pop()
        if path in files or not osp.isfile(path):
            continue
        files.append(path)
        for dots, module in re.findall(r'^\s+from (\.+)(\S+) import',
                                       Path(path).read_text('utf-8'), re.M):
            todo.append(osp.normpath(osp.join(
                osp.dirname(path), '../' * (len(dots) - 1),
                module.replace('.', '/') + '.py')))
    return files


@contextmanager
def scope_of(cfg: Config) -> Iterator[None]:
    """Make a config's toolbox the default scope of registries."""
    with DefaultScope.overwrite_default_scope(scope_name(cfg)):
        yield


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, in eval mode, without loading weights.

    Raises:
        UserError: If the config has no model, or one that does not build:
            an unknown type or argument, or a value that is refused.
    """
    check_parts(cfg, 'building it', 'model')
    with scope_of(cfg):
        # `init_cfg` is not applied, nor its weights downloaded: callers load
        # a checkpoint.
        model = copy.deepcopy(cfg.model)
        # As mmengine's runner does.
        if cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor',
                             copy.deepcopy(cfg.data_preprocessor))
        try:
            return MODELS.build(model).eval()
        except (AssertionError, AttributeError, ImportError, KeyError,
                TypeError, ValueError) as e:
            raise UserError(
                f'cannot build the model of {cfg.filename}: '
                f'{type(e).__name__}: {" ".join(str(e).split())}') from e


def image_channels(cfg: Config) -> int:
    """Number of image channels of a config's network; 3 if not given."""
    node = cfg.model.get('backbone') or cfg.model
    while isinstance(node.get('model'), dict):  # inside WithDeepTraining
        node = node['model'].get('backbone') or node['model']
    return node.get('in_channels', 3)
