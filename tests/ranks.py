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
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from torch import nn

from mmvanilla.checkpoints import from_authors, hub
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


@HOOKS.register_module(force=True)
class EvalNorms(Hook):
    """Let batch norms use their running statistics while training."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@MODELS.register_module(force=True)
class DoublePreprocessor(ClsDataPreprocessor):
    """Give images in double precision."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        data['inputs'] = data['inputs'].double()
        return data


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
    # mmengine's own loader works in a process group.
    loaded.append(from_authors(load(f'{url}more.pth')['model']))
    counts = [len(x.get('state_dict', x)) for x in loaded]
    Path(folder, f'{rank}.json').write_text(json.dumps(counts))
    torch.distributed.destroy_process_group()
