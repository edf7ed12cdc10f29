# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The Triton kernels against float64, on a GPU or in Triton's interpreter."""
import copy

import pytest
import torch
import torch.nn.functional as F
from narrow import randomize

from mmvanilla.export import optimize_for_inference
from mmvanilla.export.network import Network
from mmvanilla.kernels import fused
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead

# Largest relative L2 error: one rounding of the sum to 16 bit.
EPS = {torch.float16: 3e-4, torch.bfloat16: 3e-3}


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    assert out.shape == expected.shape
    return ((out.double() - expected).norm() / expected.norm()).item()


def maps(n, c, h, w, dtype, device) -> torch.Tensor:
    x = torch.randn(n, c, h, w, dtype=dtype, device=device)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=[torch.float16, torch.bfloat16])
def dtype(request, device):
    if device == 'cpu' and request.param == torch.bfloat16:
        pytest.skip('the interpreter computes in NumPy, without bfloat16')
    torch.manual_seed(0)
    return request.param


# Odd sizes, of which pooling leaves out a row and a column.
@pytest.mark.parametrize('shape, cout, pool', [
    ((1, 64, 5, 7), 64, True), ((2, 128, 3, 5), 128, False),
    ((1, 64, 9, 4), 192, True)])  # yapf: disable
def test_pointwise(shape, cout, pool, dtype, device):
    x = maps(*shape, dtype, device)
    weight = torch.randn(cout, shape[1], dtype=dtype, device=device)
    bias = 5 * torch.randn(cout, device=device)
    expected = F.conv2d(
        x.double(), weight.double()[..., None, None], bias.double())
    if pool:
        expected = F.max_pool2d(expected, 2)
    out = fused.pointwise(x, weight, bias, pool)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert error(out, expected.relu()) < EPS[dtype]


@pytest.mark.parametrize('shape, side', [
    ((1, 64, 7, 7), 7), ((2, 64, 3, 6), 5), ((1, 128, 1, 2), 3),
    ((1, 64, 4, 3), 1)])  # yapf: disable
def test_depthwise(shape, side, dtype, device):
    x = maps(*shape, dtype, device)
    weight = torch.randn(side, side, shape[1], dtype=dtype, device=device)
    bias = torch.randn(shape[1], device=device)
    expected = F.conv2d(
        x.double(), weight.double().permute(2, 0, 1)[:, None], bias.double(),
        padding=side // 2, groups=shape[1])
    assert error(fused.depthwise(x, weight, bias), expected) < EPS[dtype]


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'float'])
def test_patches(layout, dtype, device):
    x = torch.randn(2, 3, 10, 13, dtype=dtype, device=device)
    if layout == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 3, 4, 4, dtype=dtype, device=device)
    bias = torch.randn(64, device=device)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), 4).relu()
    if layout == 'float':
        x = x.float()
    flat = F.pad(weight.flatten(1), (0, 16))
    assert error(fused.patches(x, flat, bias, 4), expected) < EPS[dtype]


@pytest.mark.parametrize('n', [1, 3, 9])
def test_pooled_linear(n, dtype, device):
    x = maps(n, 64, 9, 9, dtype, device)
    weight = torch.randn(10, 64, dtype=dtype, device=device)
    bias = torch.randn(10, device=device)
    expected = F.linear(x.double().mean((2, 3)), weight.double(),
                        bias.double())
    assert error(fused.pooled_linear(x, weight, bias), expected) < 2 * (
        EPS[dtype])


ARCHS = dict(
    plain=dict(dims=[64, 64, 128], strides=[1, 2]),
    # A stem of overlapping patches and a pooling that stay as they are.
    ada=dict(dims=[64, 128], strides=[2], ada_pool=[5]))


def classifier(arch: str, act_num: int = 3) -> torch.nn.Module:
    net = Network(VanillaNet(ARCHS[arch], act_num=act_num),
                  VanillaNetHead(10, 128))
    switch_to_deploy(randomize(net))
    return net.eval()


@pytest.mark.parametrize('arch, act_num, replaced', [
    ('plain', 1, 4), ('ada', 1, 3), ('plain', 4, 1)])  # yapf: disable
@torch.no_grad()
def test_a_network_keeps_its_outputs(arch, act_num, replaced, dtype, device):
    net = classifier(arch, act_num).to(device, dtype)
    x = torch.randn(1, 3, 21, 26, device=device).to(dtype)
    expected = copy.deepcopy(net).double()(x.double())[0]
    assert fused.fuse(net, x) == replaced
    limit = {torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert error(net(x)[0], expected) < limit


@pytest.mark.skipif(not torch.cuda.is_available(), reason='graphs are CUDA')
@torch.no_grad()
def test_a_graph_serves_its_shape_and_others(device, record_property):
    net = classifier('plain').to(device)
    example = torch.randn(2, 3, 32, 32, device=device).half()
    fast = optimize_for_inference(
        copy.deepcopy(net).half(), example, 'triton')
    inputs = [torch.randn(n, 3, side, side, device=device).half()
              for n, side in ((2, 32), (2, 32), (1, 32), (2, 48))]
    outputs = [fast(x)[0] for x in inputs]
    worst = max(error(out, net.double()(x.double())[0])
                for x, out in zip(inputs, outputs))
    record_property('largest error', f'{worst:.2g}')
    assert worst < 5e-3
    # torch.compile passes through the operators.
    fused.fuse(network := copy.deepcopy(net).half(), example)
    compiled = torch.compile(network, fullgraph=True)
    assert error(compiled(example)[0],
                 net.double()(example.double())[0]) < 5e-3
