# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet for the OpenMMLab toolboxes.

Importing the package registers its layers, models, hooks, data sets and
metrics, and raises ImportError if a required package is missing or too old.
"""
from .utils.requirements import check_requirements
from .version import __version__

check_requirements()

from .utils.terminal import quiet_imports  # noqa: E402

with quiet_imports():
    from . import (  # noqa: F401
        checkpoints,
        datasets,
        engine,
        evaluation,
        layers,
        models,
        reparam,
    )
    from .utils.registration import register_models

register_models()

__all__ = ['__version__']
