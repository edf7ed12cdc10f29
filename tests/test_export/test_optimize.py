# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A network that was made fast has the outputs that it had before."""
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
    net = vanillanet(dict(dims=[8, 16, 16], strides=[2, 1]),
                     out_indices=(0, 1))
    x = torch.randn(1, 3, 64, 64)
    fast = optimize_for_inference(net, x)
    # Another size is compiled anew.
    for each in (x, torch.randn(2, 3, 96, 96)):
        with torch.no_grad():
            assert relative_error(fast(each), net(each)) < 1e-5


def test_eager_packs_every_convolution():
    net = vanillanet(NARROW_ARCHS['5'])
    fast = optimize_for_inference(net, torch.randn(1, 3, 64, 64), 'eager')
    assert not any(isinstance(m, nn.Conv2d) for m in fast.modules())
    x = torch.randn(3, 3, 97, 64)  # another size and batch
    with torch.no_grad():
        assert relative_error(fast(x), net(x)) < 1e-5
    assert not fast(x)[0].requires_grad


class Maps(NamedTuple):
    fine: Tensor
    coarse: Tensor


class TwoMaps(nn.Conv2d):
    """A backbone that names its feature maps."""

    def forward(self, x: Tensor) -> Maps:
        x = super().forward(x)
        return Maps(x, x[..., ::2, ::2])


def test_a_named_tuple_stays_one():
    x = torch.randn(1, 3, 16, 16)
    outputs = optimize_for_inference(TwoMaps(3, 4, 3), x, 'eager')(x)
    assert type(outputs) is Maps
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
