# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The paper's experiments in miniature; importing it registers networks."""
from . import networks  # noqa: F401
