# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Register our models with mmpretrain and our configs with mmengine."""
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmpretrain.apis import ModelHub


def root() -> Path:
    """The folder that holds ``configs``, ``tools`` and ``model-index.yml``.

    This is the root of a clone, or ``.mim`` of an installed package.
    """
    package = Path(__file__).resolve().parents[1]
    if (package.parent / 'model-index.yml').is_file():
        return package.parent
    return package / '.mim'


def register_models() -> None:
    """Register our models and configs; a second call does nothing.

    ``mmpretrain.list_models``, ``get_model`` and the inferencers know the
    models by name afterwards, and configs may inherit from
    ``mmvanilla::...``, which mmengine allows only for packages in its list.
    """
    # mmengine searches the folder of this "package". In editable installs,
    # mmengine 0.10.7 finds that of a module but not of a distribution.
    MODULE2PACKAGE.setdefault('mmvanilla', 'mmvanilla.version')
    if not ModelHub.has('vanillanet-6_8xb128_in1k'):
        ModelHub.register_model_index(
            root() / 'model-index.yml', config_prefix=root())
