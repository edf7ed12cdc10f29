# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet as what a detector or a segmentor needs of a backbone."""
import re

import pytest
import torch
from golden import relative_l2
from tiny import ROOT
from torch.autograd.graph import saved_tensors_hooks

from mmvanilla.layers import set_lam
from mmvanilla.models import VanillaNet

ARCH = dict(dims=[8, 8, 16, 16, 32], strides=[1, 2, 2, 2])


def net(**kwargs) -> VanillaNet:
    torch.manual_seed(0)
    model = VanillaNet(ARCH, **dict(dict(out_indices=(0, 1, 2, 3)), **kwargs))
    model.init_weights()
    return model


@pytest.mark.parametrize('size', [(33, 47), (127, 65)])
def test_any_size(size):
    outs = net(out_indices=(0, 1, 2, -1)).eval()(torch.rand(2, 3, *size))
    # Each stage takes only whole steps, as a stride without padding does.
    assert [tuple(out.shape) for out in outs] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(ARCH['dims'][1:], [4, 8, 16, 32])]


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


def test_table_of_out_indices():
    page = ROOT / 'docs' / 'en' / 'detection_segmentation.md'
    table = page.read_text(encoding='utf-8').split('<!-- out-indices -->')[1]
    rows = [line.strip('| ').split('|')
            for line in table.strip().splitlines()[2:]]
    assert [row[0].strip(' `') for row in rows] == list(
        VanillaNet.arch_settings)
    for arch, *cells in rows:
        indices, channels, strides = (
            [int(n) for n in re.findall(r'\d+', cell)] for cell in cells)
        with torch.device('meta'):
            model = VanillaNet(arch.strip(' `'), deploy=True).eval()
            model.out_indices = list(range(model.num_stages))
            outs = model(torch.rand(1, 3, 224, 224))
        # The deepest stage of each resolution is the one to use.
        assert indices == list({x.shape[2]: i for i, x in enumerate(outs)
                                }.values())
        assert [outs[i].shape[1] for i in indices] == channels
        if 'ada' not in arch:  # whose sizes are fixed
            assert [224 // outs[i].shape[2] for i in indices] == strides


def test_channels_last_changes_the_memory_format_only():
    results = []
    for channels_last in (False, True):
        model = net(channels_last=channels_last).train()
        set_lam(model, 0.3)
        torch.manual_seed(1)
        outs = model(torch.rand(2, 3, 64, 64))
        assert channels_last == all(
            x.is_contiguous(memory_format=torch.channels_last) for x in outs)
        sum((out**2).sum() for out in outs).backward()
        # In one, since before a batch norm a bias has no gradient.
        results.append(torch.cat([x.flatten() for x in (
            *model.buffers(), *(p.grad for p in model.parameters()))]))
    assert relative_l2(results[1], results[0]) < 2e-3
