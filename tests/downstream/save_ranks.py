# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmvanilla.layers import find_activations


@HOOKS.register_module()
class SaveRanks(Hook):
    """Write down, on each rank, what it has seen and what it has come to."""

    def before_train(self, runner):
        self.images = set()

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.images |= {s.img_id for s in data_batch['data_samples']}

    def after_train(self, runner):
        model = runner.model.module
        torch.save(
            dict(
                iters=runner.iter,
                images=self.images,
                parameters=dict(model.named_parameters()),
                lams={a.lam for a in find_activations(model).values()}),
            f'{runner.work_dir}/rank_{get_rank()}.pth')
