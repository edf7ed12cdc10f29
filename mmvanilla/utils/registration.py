# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Our models by name, in mmpretrain's own API."""
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmpretrain.apis import ModelHub


def root() -> Path:
    """The folder that holds ``configs``, ``tools`` and ``model-index.yml``.

    In a checkout it is the checkout, in an installed package its ``.mim``.
    """
    package = Path(__file__).resolve().parents[1]
    if (package.parent / 'model-index.yml').is_file():
        return package.parent
    return package / '.mim'


def register_models() -> None:
    """Add our models to mmpretrain's and our configs to those to inherit.

    ``mmpretrain.list_models``, ``get_model`` and the inferencers know them by
    name afterwards, and configs may inherit from ``mmvanilla::...``, which
    mmengine allows for packages in its own list alone. A second call does
    nothing.
    """
    # mmengine looks for the folder of this "package". A module's is found in
    # editable installs as well, which a distribution's is not in mmengine
    # 0.10.7.
    MODULE2PACKAGE.setdefault('mmvanilla', 'mmvanilla.version')
    if not ModelHub.has('vanillanet-6_8xb128_in1k'):
        ModelHub.register_model_index(
            root() / 'model-index.yml', config_prefix=root())
