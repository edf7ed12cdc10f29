# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Training in fine-tune form: loading, EMA, resuming, two processes."""
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from tiny import NARROW, assert_same_weights, read, tiny_cfg, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvanilla.layers import DeepTrainingConv2d, set_lam
from mmvanilla.models import VanillaNet


def finetune_cfg(work_dir):
    cfg = tiny_cfg(work_dir, epochs=2)
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(deep_training=False),
                head=dict(deep_training=False)),
            # A merged weight is small, and each step of AdamW is lr.
            optim_wrapper=dict(optimizer=dict(lr=1e-7))))
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    return cfg


def test_run_from_a_train_form_checkpoint(tmp_path):
    source = train(tiny_cfg(tmp_path / 'source', epochs=1, decay_epochs=1))
    set_lam(source.model, 1)
    torch.save(dict(state_dict=source.model.state_dict()),
               tmp_path / 'source.pth')

    cfg = finetune_cfg(tmp_path / 'whole')
    cfg.load_from = str(tmp_path / 'source.pth')
    whole = train(cfg)
    assert not whole.model.backbone.stem.conv.deep_training
    assert type(whole.model.head.classifier) is nn.Conv2d
    # The first step started from the merged source and not from noise.
    source.model.eval()
    source.model.backbone.switch_to_finetune()
    source.model.head.switch_to_finetune()
    start = source.model.state_dict()
    for key, value in whole.model.state_dict().items():
        if key.endswith('conv.weight') and value.ndim == 4:
            assert (value - start[key]).norm() < 0.1 * start[key].norm(), key
            assert not torch.equal(value, start[key]), key

    cfg = finetune_cfg(tmp_path / 'resumed')
    cfg.load_from = str(tmp_path / 'whole' / 'epoch_1.pth')
    cfg.resume = True
    train(cfg)
    a, b = (read(tmp_path / run / 'epoch_2.pth')
            for run in ('whole', 'resumed'))
    assert_same_weights(a['state_dict'], b['state_dict'])
    assert_same_weights(a['ema_state_dict'], b['ema_state_dict'])
    different = [
        key for key, value in a['state_dict'].items()
        if not torch.equal(value, a['ema_state_dict'][f'module.{key}'])
    ]
    assert different  # the average is not the model


def data(rank: int) -> torch.Tensor:
    torch.manual_seed(rank)
    return torch.rand(2, 3, 32, 32).double()


def network() -> VanillaNet:
    torch.manual_seed(0)
    model = VanillaNet(NARROW, norm_eval=True).double()
    model.init_weights()
    model.switch_to_finetune()
    assert isinstance(model.stem.conv, DeepTrainingConv2d)
    return model.train()


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    model(data(rank))[0].sum().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], f'{folder}/grads.pt')
    dist.destroy_process_group()


def test_gradients_of_two_processes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), tmp_path],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    model = network()
    model(torch.cat([data(0), data(1)]))[0].sum().div(2).backward()
    grads = torch.load(tmp_path / 'grads.pt', weights_only=True)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, p.grad)


if __name__ == '__main__':
    rank_main(int(sys.argv[1]), sys.argv[2])
