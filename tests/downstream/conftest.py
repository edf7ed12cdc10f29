# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from pathlib import Path

import pytest
from downstream.shapes import generate


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A folder of coloured shapes, 400 to train on and 80 held out."""
    return generate(tmp_path_factory.mktemp('shapes'))
