# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import functools
import gc
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from photos import write_photos

# The server that processes are forked from imports `tiny` by this path only.
os.environ['PYTHONPATH'] = os.pathsep.join(filter(
    None, [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]))
# Networks here are small: a second thread costs more than it gives, and the
# cores are for the processes of `pytest -n`.
torch.set_num_threads(1)


@pytest.fixture(scope='session', autouse=True)
def names_of_runs():
    """Give each run of this process a name, with a log of its own.

    mmengine names them by the second, and those of a name share their log.
    """
    # What the imports left, which each data set of mmengine has collected.
    gc.freeze()
    init, numbers = Runner.__init__, itertools.count()

    @functools.wraps(init)
    def named(self, *args, **kwargs):
        kwargs['experiment_name'] = f'run_{next(numbers)}'
        init(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '__init__', named)
        yield


@pytest.fixture(autouse=True)
def seeds():
    """Let no test depend on chance, or on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> Path:
    """A folder of ten photos for each class, not to be changed."""
    return write_photos(tmp_path_factory.mktemp('photos'), per_class=10)
