# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import hooks  # noqa: F401
import torch
from tiny import build, tiny_cfg, train

from mmvanilla.reparam import find_activations


def test_switch_to_finetune(tmp_path):
    """Four epochs, of which the last has lambda 1."""
    plain = train(tiny_cfg(tmp_path / 'plain'))
    cfg = tiny_cfg(tmp_path / 'switched')
    cfg.custom_hooks.append(dict(type='SwitchToFinetuneHook', priority='LOW'))
    runner = build(cfg)
    outputs = []
    x = torch.rand(4, 1, 32, 32)
    switch = runner.hooks[[type(h).__name__ for h in runner.hooks].index(
        'SwitchToFinetuneHook')]
    before_train_epoch = switch.before_train_epoch

    def watched(runner):
        with torch.no_grad():
            outputs.append(runner.model.eval()(x))
            before_train_epoch(runner)
            outputs.append(runner.model(x))
        runner.model.train()

    switch.before_train_epoch = watched
    runner.train()
    assert len(outputs) == 8
    for before, after in zip(outputs[::2], outputs[1::2]):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert find_activations(plain.model)
    assert not find_activations(runner.model)
    # What is optimized is the merged network, at the rate of the schedule.
    optimized = [p for group in runner.optim_wrapper.optimizer.param_groups
                 for p in group['params']]
    assert {id(p) for p in optimized} == {
        id(p) for p in runner.model.parameters()}
    assert not torch.equal(outputs[-1], runner.model.eval()(x))
    assert set(runner.optim_wrapper.get_lr()['lr']) == set(
        plain.optim_wrapper.get_lr()['lr'])
