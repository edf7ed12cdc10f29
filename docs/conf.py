# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Sphinx settings of both languages: sphinx-build -c docs docs/en OUT."""
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = 'mmvanilla'
author = 'mmvanilla authors'
release = runpy.run_path(str(ROOT / 'mmvanilla/version.py'))['__version__']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
html_theme = 'furo'
nitpicky = False
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# Base classes of the toolboxes have docstrings of their own format.
autodoc_default_options = dict(members=True, inherited_members=False)
exclude_patterns = ['snippets']
