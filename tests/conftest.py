# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
from pathlib import Path

import torch

# The server that processes are forked from imports `tiny` by this path only.
os.environ['PYTHONPATH'] = os.pathsep.join(filter(
    None, [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]))
# Networks here are small: a second thread costs more than it gives, and the
# cores are for the processes of `pytest -n`.
torch.set_num_threads(1)
