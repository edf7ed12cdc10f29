# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import os
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader

from mmvanilla.checkpoints import hub
from mmvanilla.layers import find_activations


@HOOKS.register_module(force=True)
class SaveEachRank(Hook):
    """Save what each process has at the end as ``rank0.pth`` and so on."""

    priority = 'LOWEST'

    def __init__(self, folder):
        self.folder = folder
        self.lams = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        acts = find_activations(runner.model).values()
        self.lams.append([act.lam for act in acts])

    def after_train(self, runner):
        assert is_model_wrapper(runner.model)
        torch.save(
            dict(lams=self.lams, state_dict=runner.model.module.state_dict()),
            f'{self.folder}/rank{get_rank()}.pth')


def load_official(rank: int, port: str, url: str, folder: str) -> None:
    """Load by name before and after there is a process group."""
    load = CheckpointLoader.load_checkpoint
    torch.set_num_threads(1)
    hub.URL = url
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1', MASTER_PORT=port, TORCH_HOME=folder)
    loaded = [load('vanillanet://vanillanet_5')]
    torch.distributed.init_process_group('gloo')
    loaded.append(load('vanillanet://vanillanet_6'))
    loaded.append(load('vanillanet://vanillanet_5'))
    counts = [len(x['state_dict']) for x in loaded]
    Path(folder, f'{rank}.json').write_text(json.dumps(counts))
    torch.distributed.destroy_process_group()
