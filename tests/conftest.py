# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import torch

# Networks here are small: a second thread costs more than it gives, and the
# cores are for the processes of `pytest -n`.
torch.set_num_threads(1)
