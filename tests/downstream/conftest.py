# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import importlib.util
from pathlib import Path

import pytest
from downstream.runs import train_and_merge
from downstream.shapes import generate

# These tests need the toolboxes and mmcv's ops; .ci/run installs them.
if not all(map(importlib.util.find_spec, ('mmdet', 'mmseg', 'mmcv._ext'))):
    collect_ignore_glob = ['test_*.py']


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A folder of coloured shapes, 400 to train on and 80 held out."""
    return generate(tmp_path_factory.mktemp('shapes'))


@pytest.fixture(scope='session')
def runs(shapes, tmp_path_factory):
    """Each model's run, done when it is first asked for."""
    done = {}

    def get(name):
        if name not in done:
            done[name] = train_and_merge(name, shapes,
                                         tmp_path_factory.mktemp(name))
        return done[name]

    return get
