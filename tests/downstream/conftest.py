# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import fcntl
import importlib.util
import os
import pickle
from pathlib import Path

import pytest
from downstream.runs import train_and_merge
from downstream.shapes import generate

# These tests need the toolboxes and mmcv's ops; .ci/run installs them.
if not all(map(importlib.util.find_spec, ('mmdet', 'mmseg', 'mmcv._ext'))):
    collect_ignore_glob = ['test_*.py']


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> Path:
    """A folder of the whole test run: workers of xdist have one in it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base


def once(path: Path, make):
    """What ``make`` returns, made by the first process that asks for it."""
    with open(f'{path}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope='session')
def shapes(shared) -> Path:
    """A folder of coloured shapes, 400 to train on and 80 held out."""
    return once(shared / 'shapes.pkl', lambda: generate(shared / 'shapes'))


@pytest.fixture(scope='session')
def runs(shapes, shared):
    """Each model's run, done when it is first asked for."""

    def get(name):
        folder = shared / f'run_{name}'
        folder.mkdir(exist_ok=True)
        return once(shared / f'run_{name}.pkl',
                    lambda: train_and_merge(name, shapes, folder))

    return get
