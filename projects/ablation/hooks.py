# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Hooks of the experiments."""
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from mmvanilla.reparam import find_activations, switch_to_finetune


@HOOKS.register_module()
class SwitchToFinetuneHook(Hook):
    """Train on in fine-tune form from the epoch in which lambda is 1.

    The optimizer starts anew for the merged weights, without the state of the
    old ones, and the learning rate, the same for all, goes on. It comes after
    ``DeepTrainingHook`` in ``custom_hooks``.
    """

    def before_train_epoch(self, runner) -> None:
        activations = find_activations(runner.model).values()
        if not activations or any(act.lam < 1 for act in activations):
            return
        layers = switch_to_finetune(runner.model)
        old = runner.optim_wrapper.optimizer.param_groups[0]
        runner.optim_wrapper = runner.build_optim_wrapper(
            runner.cfg.optim_wrapper)
        optimizer = runner.optim_wrapper.optimizer
        for group in optimizer.param_groups:
            group.update(lr=old['lr'], initial_lr=old['initial_lr'])
        for scheduler in runner.param_schedulers:
            scheduler.optimizer = optimizer
            scheduler.base_values = scheduler.base_values[:1] * len(
                optimizer.param_groups)
        runner.logger.info(f'Merged {layers} layers to fine-tune form')
