# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet for the OpenMMLab toolboxes; importing it registers it."""
from .utils.requirements import check_requirements
from .version import __version__

check_requirements()

from . import datasets, engine, layers, models, reparam  # noqa: E402, F401
from .checkpoints import allow_mmengine_checkpoints  # noqa: E402
from .utils.registration import register_models  # noqa: E402

allow_mmengine_checkpoints()
register_models()

__all__ = ['__version__']
