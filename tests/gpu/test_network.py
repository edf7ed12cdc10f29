# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The network on a GPU, against float64 and the authors' numbers."""
import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from golden import build_classifier, load, relative_l2
from narrow import NARROW_ARCHS, TINY, randomize
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmvanilla.checkpoints import from_authors
from mmvanilla.export import optimize_for_inference
from mmvanilla.layers import find_layers, set_lam, switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead

GOLDEN = ['plain', 'act4_deep', 'ada_pool']


@pytest.mark.parametrize('name', GOLDEN)
@torch.no_grad()
def test_golden_outputs_and_merge(name, device, record_property):
    golden = load(name)
    x = golden['input'].to(device)
    model = build_classifier(golden).to(device)
    for lam, expected in golden['eval'].items():
        set_lam(model, lam)
        assert relative_l2(model(x).cpu(), expected['logits']) < 2e-5
    set_lam(model, 1)
    reference = golden['logits_float64_lambda1']
    exact = copy.deepcopy(model).double()
    switch_to_deploy(exact)
    assert relative_l2(exact(x.double()).cpu(), reference) < 1e-6

    on_cpu = copy.deepcopy(model).cpu()
    for merged in (model, on_cpu):
        assert switch_to_deploy(merged) and not find_layers(merged)
    for key, weight in model.state_dict().items():
        assert weight.device.type == device and weight.dtype == torch.float32
        assert relative_l2(weight.cpu(), on_cpu.state_dict()[key]) < 1e-6
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory_format)
        out = model(x.to(memory_format=memory_format))
        assert relative_l2(out.cpu(), reference) < 2e-5
    for dtype, tol in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        out = copy.deepcopy(model).to(dtype)(x.to(dtype))
        error = relative_l2(out.cpu(), reference)
        record_property(f'error of {dtype}', f'{error:.2g}')
        assert error < tol


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_step(name, device):
    golden = load(name)
    step = golden['train']
    model = build_classifier(golden).double().to(device).train()
    set_lam(model, step['lambda'])
    logits = model(golden['input'].double().to(device))
    loss = F.binary_cross_entropy_with_logits(
        logits, step['target'].double().to(device))
    loss.backward()
    assert loss.item() == pytest.approx(step['loss'], rel=1e-6)
    expected = from_authors({**golden['state_dict'], **step['grads']})
    grads = {n: p.grad.cpu() for n, p in model.named_parameters()}
    assert relative_l2(*(torch.cat([x[k].flatten() for k in grads])
                         for x in (grads, expected))) < 1e-6
    expected = from_authors({**golden['state_dict'], **step['buffers_after']})
    for key, buffer in model.named_buffers():
        assert relative_l2(buffer.cpu(), expected[key]) < 1e-6, key


def classifier(arch, classes: int, **kwargs) -> nn.Module:
    """A random network in train form, in eval mode."""
    backbone = VanillaNet(arch, **kwargs)
    width = backbone.stages[-1].act.num_channels
    return randomize(nn.Sequential(
        backbone, VanillaNetHead(classes, width, **kwargs)))


def test_published_width_in_mixed_precision(device, record_property):
    """VanillaNet-6 as published: forms, layouts and precisions agree."""
    arch, size, classes = '6', 224, 1000
    if device == 'cpu':
        arch, size, classes = NARROW_ARCHS['6'], 64, 10
    model = classifier(arch, classes).to(device)
    torch.manual_seed(1)
    x = torch.randn(4, 3, size, size, device=device)
    merged = copy.deepcopy(model)
    switch_to_deploy(merged)
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(x.double())
        for name, net in dict(trained=model, merged=merged).items():
            for memory_format in (torch.contiguous_format,
                                  torch.channels_last):
                net.to(memory_format=memory_format)
                error = relative_l2(
                    net(x.contiguous(memory_format=memory_format)), reference)
                record_property(f'{name}, {memory_format}', f'{error:.2g}')
                assert error < 1e-4
    for dtype, tol in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        trained = copy.deepcopy(model).train()
        set_lam(trained, 0.5)
        with torch.autocast(device, dtype):
            loss = trained(x).float().square().mean()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in trained.parameters())
        with torch.no_grad(), torch.autocast(device, dtype):
            error = relative_l2(merged(x), model(x))
        record_property(f'merged against trained, {dtype}', f'{error:.2g}')
        assert error < tol


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_recomputed_stages(dtype, device):
    """With checkpoints of activations: the same step, statistics once."""
    torch.manual_seed(1)
    x = torch.randn(4, 3, 32, 32, device=device)
    nets = [randomize(VanillaNet(TINY, with_cp=with_cp)).to(device).train()
            for with_cp in (False, True)]
    for net in nets:
        set_lam(net, 0.5)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = net(x)[0].float().square().mean()
        loss.backward()
    plain, recomputed = nets
    for key, value in plain.state_dict().items():
        assert relative_l2(recomputed.state_dict()[key] + 1, value + 1) < 1e-6
    a, b = (torch.cat([p.grad.flatten() for p in net.parameters()])
            for net in nets)
    assert relative_l2(b, a) < 1e-4


@pytest.fixture
def process_group(device, tmp_path):
    """A group of this process; a CPU has no SyncBN in one."""
    if device == 'cuda':
        dist.init_process_group(
            'nccl', init_method=f'file://{tmp_path}/init', rank=0,
            world_size=1)
    yield
    if device == 'cuda':
        dist.destroy_process_group()


def test_synchronized_norms(device, process_group):
    """They train, convert and merge as the others."""
    plain = classifier(TINY, 5).to(device)
    built = classifier(TINY, 5, norm_cfg=dict(type='SyncBN', eps=1e-6))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x = torch.rand(4, 3, 32, 32, device=device)
    nets = [plain, built.to(device), converted]
    assert [any(isinstance(m, nn.SyncBatchNorm) for m in net.modules())
            for net in nets] == [False, True, True]
    outputs, grads = [], []
    for net in nets:
        net.load_state_dict(classifier(TINY, 5).state_dict())
        set_lam(net.train(), 0.5)
        net(x).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        set_lam(net.eval(), 1)
        with torch.no_grad():
            expected = net(x)
            assert switch_to_deploy(net) == 9
            outputs.append(net(x))
        assert relative_l2(outputs[-1], expected) < 1e-5
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in net.modules())
    for other in (1, 2):
        assert relative_l2(grads[other], grads[0]) < 1e-4
        assert relative_l2(outputs[other], outputs[0]) < 1e-4


def test_compiled_training(device, record_property):
    """The steps of eager training, at six values of lambda."""
    arch = dict(dims=[16, 32, 32], strides=[2, 1])
    eager = classifier(arch, 5).to(device).train()
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend('inductor')
    compiled = torch.compile(model, backend=counter)
    torch.manual_seed(1)
    x = torch.randn(8, 3, 64, 64, device=device)
    target = torch.rand(8, 5, device=device)
    counts, worst = [], 0.0
    for epoch in range(6):
        losses = []
        for net, call in ((eager, eager), (model, compiled)):
            set_lam(net, epoch / 5)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            for _ in range(2):
                loss = F.binary_cross_entropy_with_logits(call(x), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        worst = max(abs(losses[0] - losses[2]), abs(losses[1] - losses[3]),
                    worst)
        counts.append(counter.frame_count)
    record_property('graphs after each epoch', counts)
    record_property('largest difference of the loss', f'{worst:.2g}')
    assert worst < 1e-3
    assert counts[-1] == counts[2] <= 3
    assert losses[0] != losses[1]


def test_optimized_outputs_stay(device):
    """What a network put out is not overwritten by its next call."""
    net = randomize(VanillaNet(TINY))
    switch_to_deploy(net)
    net.to(device)
    torch.manual_seed(1)
    images = [torch.rand(1, 3, 32, 32, device=device) for _ in range(3)]
    optimized = optimize_for_inference(net, images[0])
    with torch.no_grad():
        expected = [net(x)[0] for x in images]
        got = [optimized(x)[0] for x in images]
    for a, b in zip(got, expected):
        assert relative_l2(a, b) < 1e-4
