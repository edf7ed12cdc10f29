# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet as what a detector or a segmentor needs of a backbone."""
import re

import pytest
import torch
from tiny import ROOT, assert_same_weights, read, tiny_cfg, train
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mmvanilla.layers import find_activations, set_lam
from mmvanilla.models import VanillaNet

ARCH = dict(dims=[8, 8, 16, 16, 32], strides=[1, 2, 2, 2])
STRIDES = [4, 8, 16, 32]


def net(**kwargs) -> VanillaNet:
    torch.manual_seed(0)
    kwargs.setdefault('out_indices', (0, 1, 2, 3))
    model = VanillaNet(ARCH, **kwargs)
    model.init_weights()
    return model


@pytest.mark.parametrize('size', [(33, 47), (64, 35), (127, 65)])
@pytest.mark.parametrize('deploy', [False, True])
def test_any_size(size, deploy):
    outs = net(deploy=deploy).eval()(torch.rand(2, 3, *size))
    # Each stage takes only whole steps, as a stride without padding does.
    assert [tuple(out.shape) for out in outs] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(ARCH['dims'][1:], STRIDES)
    ]


@pytest.mark.parametrize('index, lam', [(0, 1), (1, 0), (3, 0.5)])
def test_gradient_from_a_single_output(index, lam):
    model = net(out_indices=(index, ))
    set_lam(model, lam)
    out, = model.train()(torch.rand(4, 3, 64, 64))
    (out * torch.rand_like(out)).sum().backward()
    for name, param in model.named_parameters():
        # What lies behind the output has no part in it.
        reached = (
            name.startswith('stem.') or int(name.split('.')[1]) <= index)
        assert (param.grad is not None) == reached, name
        if reached and param.ndim > 1:
            assert param.grad.abs().sum() > 0, name


@pytest.mark.parametrize('lam, frozen_stages', [(0.3, -1), (1, 1)])
def test_with_cp_saves_memory_and_changes_no_number(lam, frozen_stages):
    results, saved = [], []
    for with_cp in (False, True):
        model = net(with_cp=with_cp, frozen_stages=frozen_stages).double()
        set_lam(model, lam)
        model.train()
        torch.manual_seed(1)
        saved.append(0)

        def count(tensor):
            saved[-1] += tensor.nbytes * (tensor.dim() == 4)
            return tensor

        for _ in range(2):
            with saved_tensors_hooks(count, lambda x: x):
                outs = model(torch.rand(2, 3, 64, 64, dtype=torch.double))
            sum((out**2).sum() for out in outs).backward()
        results.append(
            [*outs, *(p.grad for p in model.parameters() if p.requires_grad),
             *model.buffers()])
    assert len(results[0]) > 40
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert saved[1] < 0.6 * saved[0], saved


def test_lambda_is_one_without_a_hook():
    assert {a.lam for a in find_activations(net().train()).values()} == {1.0}


def numbers(cell: str) -> list:
    return [int(n) for n in re.findall(r'-?\d+', cell)]


def test_table_of_out_indices():
    page = ROOT / 'docs' / 'en' / 'detection_segmentation.md'
    table = page.read_text(encoding='utf-8').split('<!-- out-indices -->')[1]
    rows = [[cell.strip(' `') for cell in line.strip('|').split('|')]
            for line in table.strip().splitlines()[2:]]
    assert [row[0] for row in rows] == list(VanillaNet.arch_settings)
    for arch, out_indices, channels, strides in rows:
        with torch.device('meta'):
            model = VanillaNet(arch, out_indices=numbers(out_indices)).eval()
            every = VanillaNet(
                arch, out_indices=range(model.num_stages)).eval()
            images = torch.rand(1, 3, 224, 224)
            outs, shapes = model(images), [x.shape[2] for x in every(images)]
        assert [out.shape[1] for out in outs] == numbers(channels)
        # The deepest stage of each resolution is the one to use.
        deepest = {shape: i for i, shape in enumerate(shapes)}
        assert model.out_indices == list(deepest.values())
        if arch.endswith('ada'):
            assert strides == 'fixed sizes'
        else:
            assert [224 // out.shape[2] for out in outs] == numbers(strides)


def test_a_run_in_finetune_form_from_a_train_form_checkpoint(tmp_path):
    source = train(tiny_cfg(tmp_path / 'source', epochs=1, decay_epochs=1))
    set_lam(source.model, 1)
    torch.save(dict(state_dict=source.model.state_dict()),
               tmp_path / 'source.pth')

    def run(name: str, start: str, resume: bool):
        cfg = tiny_cfg(tmp_path / name, epochs=2)
        for part in (cfg.model.backbone, cfg.model.head):
            part.deep_training = False
        # A merged weight is small, and each step of AdamW is lr.
        cfg.optim_wrapper.optimizer.lr = 1e-7
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
        cfg.load_from, cfg.resume = str(tmp_path / start), resume
        return train(cfg).model, read(tmp_path / name / 'epoch_2.pth')

    model, a = run('whole', 'source.pth', resume=False)
    assert not model.backbone.stem.conv.deep_training
    assert type(model.head.classifier) is nn.Conv2d
    # The first step started from the merged source and not from noise.
    source.model.backbone.switch_to_finetune()
    source.model.head.switch_to_finetune()
    start = source.model.state_dict()
    for key, value in model.state_dict().items():
        if key.endswith('conv.weight') and value.ndim == 4:
            assert 0 < (value - start[key]).norm() < 0.1 * start[key].norm()

    _, b = run('resumed', 'whole/epoch_1.pth', resume=True)
    assert_same_weights(a['state_dict'], b['state_dict'])
    assert_same_weights(a['ema_state_dict'], b['ema_state_dict'])
    assert any(  # the average is not the model
        not torch.equal(value, a['ema_state_dict'][f'module.{key}'])
        for key, value in a['state_dict'].items())
