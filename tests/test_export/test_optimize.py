# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A network that was made fast has the outputs that it had before."""
import copy
from typing import NamedTuple

import pytest
import torch
from narrow import NARROW_ARCHS, relative_error, vanillanet
from torch import Tensor, nn

from mmvanilla.export import optimize_for_inference
from mmvanilla.export.optimize import PackedConv2d
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError


@pytest.mark.slow  # it compiles
def test_inductor_has_the_same_outputs():
    arch = dict(dims=[8, 16, 16], strides=[2, 1])
    net = vanillanet(arch, out_indices=(0, 1))
    weights = copy.deepcopy(net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        reference = net(x)
    fast = optimize_for_inference(net, x)
    outputs = fast(x)
    assert type(outputs) is type(reference) and outputs[0].is_contiguous()
    assert relative_error(outputs, reference) < 1e-5
    # Another size is compiled anew, and the model itself was left alone.
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert relative_error(fast(x), net(x)) < 1e-5
    for key, value in net.state_dict().items():
        assert torch.equal(value, weights[key])


def test_eager_packs_every_convolution():
    net = vanillanet(NARROW_ARCHS['5'])
    fast = optimize_for_inference(net, torch.randn(1, 3, 64, 64), 'eager')
    modules = list(fast.modules())
    packed = sum(isinstance(m, PackedConv2d) for m in modules)
    assert packed == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert not any(isinstance(m, nn.Conv2d) for m in modules)
    # Other sizes and batches than the example's.
    for shape in ((1, 3, 97, 64), (3, 3, 224, 224)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(fast(x), net(x)) < 1e-5
    assert not fast(x)[0].requires_grad


class Maps(NamedTuple):
    fine: Tensor
    coarse: Tensor


class TwoMaps(nn.Module):
    """A backbone that names its feature maps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Maps:
        x = self.conv(x)
        return Maps(x, x[..., ::2, ::2])


def test_a_named_tuple_stays_one():
    net, x = TwoMaps().eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        reference = net(x)
    outputs = optimize_for_inference(net, x, 'eager')(x)
    assert type(outputs) is Maps
    assert relative_error(outputs, reference) < 1e-5
    assert all(out.is_contiguous() for out in outputs)


def test_eager_keeps_what_it_cannot_pack():
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv2d(4, 4, 3, padding='same', bias=False), shared, nn.ReLU(),
        shared, nn.Conv2d(4, 8, 3, stride=2, dilation=2, groups=2)).eval()
    x = torch.randn(2, 3, 20, 21)
    fast = optimize_for_inference(net, x, 'eager')
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
    kinds = [type(m) for m in fast.network]
    assert kinds[:2] == [nn.Conv2d, nn.Conv2d]
    assert kinds[2] == kinds[4] == kinds[5] == PackedConv2d
    assert fast.network[2] is fast.network[4]


def test_a_convolution_is_a_network():
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    fast = optimize_for_inference(conv, x, 'eager')
    assert isinstance(fast.network, PackedConv2d)
    with torch.no_grad():
        assert relative_error(fast(x), conv(x)) < 1e-5


def test_refusals(monkeypatch):
    x = torch.randn(1, 3, 64, 64)
    net = VanillaNet(NARROW_ARCHS['5'])
    with pytest.raises(UserError, match='"stem.conv" is not merged'):
        optimize_for_inference(net, x)
    switch_to_deploy(net.eval())
    with pytest.raises(UserError, match='must be one of inductor, eager'):
        optimize_for_inference(net, x, 'fast')
    with pytest.raises(UserError, match='is for CPUs'):
        optimize_for_inference(net, x.to('meta'), 'eager')
    monkeypatch.setenv('CXX', 'no-compiler')
    with pytest.raises(UserError, match='needs a C.. compiler'):
        optimize_for_inference(net, x)
