# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import hooks  # noqa: F401
import torch
from mmengine.hooks import Hook
from tiny import build, tiny_cfg

from mmvanilla.reparam import find_activations


class Outputs(Hook):
    """Records a model's outputs at the start of each epoch."""

    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        with torch.no_grad():
            self.seen.append(runner.model.eval()(torch.ones(4, 1, 32, 32)))
        runner.model.train()


def test_switch_to_finetune(tmp_path):
    """Three epochs, of which the last has lambda 1."""
    cfg = tiny_cfg(tmp_path, epochs=3, decay_epochs=2)
    cfg.custom_hooks.append(dict(type='SwitchToFinetuneHook', priority='LOW'))
    runner = build(cfg)
    before, after = Outputs(), Outputs()
    runner.register_hook(before, 'BELOW_NORMAL')
    runner.register_hook(after, 'VERY_LOW')
    runner.train()
    torch.testing.assert_close(after.seen, before.seen, rtol=1e-3, atol=1e-3)
    assert not find_activations(runner.model)
    # What is optimized is the merged network, at the rate of the schedule.
    optimized = [p for group in runner.optim_wrapper.optimizer.param_groups
                 for p in group['params']]
    assert {id(p) for p in optimized} == {
        id(p) for p in runner.model.parameters()}
    after.before_train_epoch(runner)
    assert not torch.equal(after.seen[-1], after.seen[-2])
    assert len(set(runner.optim_wrapper.get_lr()['lr'])) == 1
