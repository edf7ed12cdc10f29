# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet for the OpenMMLab toolboxes.

Importing the package registers its layers, models, hooks, data sets and
metrics, the scheme ``vanillanet://`` and the model index, and raises
ImportError if a required package is missing or too old.
"""
from .utils.requirements import check_requirements
from .version import __version__

check_requirements()

from . import (  # noqa: E402, F401
    checkpoints,
    datasets,
    engine,
    evaluation,
    layers,
    models,
    reparam,
)

__all__ = ['__version__']
