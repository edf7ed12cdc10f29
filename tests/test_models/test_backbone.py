# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet as what a detector or a segmentor needs of a backbone."""
import os
import re
import subprocess
import sys

import pytest
import torch
from tiny import ROOT

from mmvanilla.layers.forms import set_lam
from mmvanilla.models import VanillaNet

ARCH = dict(dims=[8, 8, 16, 16, 32], strides=[1, 2, 2, 2])
STRIDES = [4, 8, 16, 32]


def net(seed: int = 0, **kwargs) -> VanillaNet:
    torch.manual_seed(seed)
    kwargs.setdefault('out_indices', (0, 1, 2, 3))
    model = VanillaNet(ARCH, **kwargs)
    model.init_weights()
    return model


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 35), (127, 65),
                                  (101, 224)])
def test_any_size(size):
    model = net()
    for deploy in (False, True):
        if deploy:
            model.switch_to_deploy()
        outs = model.eval()(torch.rand(2, 3, *size))
        # Each stage takes whole steps only, as a stride without padding does.
        assert [tuple(out.shape) for out in outs] == [
            (2, channels, size[0] // stride, size[1] // stride)
            for channels, stride in zip(ARCH['dims'][1:], STRIDES)
        ]


@pytest.mark.parametrize('index', range(4))
@pytest.mark.parametrize('lam', [0, 0.5, 1])
def test_gradient_from_each_output_alone(index, lam):
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


@pytest.mark.parametrize('frozen_stages', [-1, 1])
@pytest.mark.parametrize('lam', [0.3, 1])
def test_with_cp_changes_no_number(lam, frozen_stages):
    results = []
    for with_cp in (False, True):
        model = net(with_cp=with_cp, frozen_stages=frozen_stages).double()
        set_lam(model, lam)
        model.train()
        torch.manual_seed(1)
        for _ in range(2):
            outs = model(torch.rand(2, 3, 64, 64, dtype=torch.double))
            sum((out**2).sum() for out in outs).backward()
        results.append(
            [*outs, *(p.grad for p in model.parameters() if p.requires_grad),
             *model.buffers()])
    assert len(results[0]) > 40
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


PEAK = '''
import re, sys, torch
from mmvanilla.models import VanillaNet
# Not of getrusage: that begins with what the parent process holds.
peak = lambda: int(re.search(
    r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 1024
torch.set_num_threads(1)
model = VanillaNet(dict(dims=[64] * 9, strides=[1] * 8),
                   with_cp=sys.argv[1] == 'True').train()
model(torch.rand(1, 3, 64, 64))[0].sum().backward()
x = torch.rand(4, 3, 256, 256)
before = peak()
model(x)[0].sum().backward()
print(peak() - before)
'''

# What is freed leaves the process at once, in every thread, so that a peak is
# of what is in use and not of glibc's reserves.
MEMORY_RETURNED = dict(MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='65536')


def test_with_cp_saves_memory():
    plain, saving = [
        float(
            subprocess.run([sys.executable, '-c', PEAK, str(with_cp)],
                           cwd=ROOT,
                           env=dict(os.environ, **MEMORY_RETURNED),
                           capture_output=True,
                           text=True,
                           check=True).stdout.split()[-1])
        for with_cp in (False, True)
    ]
    # Megabytes; about one activation of the five that a stage keeps is left.
    assert saving < 0.4 * plain, (saving, plain)


def test_lambda_is_one_without_a_hook():
    model = net().train()
    assert {m.lam for m in model.modules() if hasattr(m, 'lam')} == {1.0}


def table_of_the_docs() -> dict:
    page = ROOT / 'docs' / 'en' / 'detection_segmentation.md'
    text = page.read_text(encoding='utf-8')
    between = re.search(
        r'<!-- out-indices -->(.*)<!-- out-indices -->', text, re.S).group(1)
    rows = [[cell.strip(' `') for cell in line.strip('|').split('|')]
            for line in between.strip().splitlines()]
    head, _, *rows = rows
    assert head == ['arch', 'out_indices', 'channels', 'strides']
    return {row[0]: row[1:] for row in rows}


def numbers(cell: str) -> list:
    return [int(n) for n in re.findall(r'-?\d+', cell)]


def test_table_of_out_indices():
    table = table_of_the_docs()
    assert list(table) == list(VanillaNet.arch_settings)
    assert len(table) == 11
    for arch, (out_indices, channels, strides) in table.items():
        with torch.device('meta'):
            model = VanillaNet(arch, out_indices=numbers(out_indices)).eval()
            every = VanillaNet(
                arch, out_indices=range(model.num_stages)).eval()
            outs = model(torch.rand(1, 3, 224, 224))
            shapes = [tuple(out.shape) for out in every(
                torch.rand(1, 3, 224, 224))]
        assert [out.shape[1] for out in outs] == numbers(channels)
        # The deepest stage of each resolution is what is to be taken.
        deepest = {shape[2]: i for i, shape in enumerate(shapes)}
        assert model.out_indices == list(deepest.values())
        if arch not in ('5', '6'):
            # As the detectors' configs write them, whatever the depth.
            with torch.device('meta'):
                same = VanillaNet(arch, out_indices=(0, 1, -3, -1))
            assert same.out_indices == model.out_indices
        if arch.endswith('ada'):
            assert strides == 'fixed sizes'
        else:
            assert [224 // out.shape[2] for out in outs] == numbers(strides)


def test_arch_as_a_number():
    """``--cfg-options model.backbone.arch=6`` gives a number."""
    assert VanillaNet(5).num_stages == 3
    with pytest.raises(ValueError, match=r'one of 5, 6, .*, 13-x1\.5.*"14"'):
        VanillaNet(14)
