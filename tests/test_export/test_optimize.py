# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A network that was made fast has the outputs that it had before."""
from typing import NamedTuple

import pytest
import torch
from narrow import NARROW_ARCHS, randomize, relative_error, vanillanet
from torch import Tensor, nn

from mmvanilla.export import optimize_for_inference
from mmvanilla.export.exported import Exported
from mmvanilla.export.formats import write
from mmvanilla.export.network import Network
from mmvanilla.export.optimize import PackedConv2d
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead
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


@pytest.mark.parametrize('arch', NARROW_ARCHS)
@torch.no_grad()
def test_every_published_variant(arch, tmp_path):
    """As a program and in eager mode, against the train form."""
    net = randomize(Network(VanillaNet(NARROW_ARCHS[arch]), VanillaNetHead(
        10, NARROW_ARCHS[arch]['dims'][-1])))
    # The second is of another size and batch.
    images = torch.randn(1, 3, 224, 224), torch.randn(3, 3, 97, 64)
    references = [net(x) for x in images]
    switch_to_deploy(net)
    write(net, images[0], tmp_path / 'net.pt2', 'pt2')
    out = Exported(tmp_path / 'net.pt2')(images[0])
    assert relative_error(out, references[0]) < 1e-5
    fast = optimize_for_inference(net, images[0], 'eager')
    assert not any(isinstance(m, nn.Conv2d) for m in fast.modules())
    for x, reference in zip(images, references):
        assert relative_error(fast(x), reference) < 1e-5


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
    shared = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv2d(4, 4, 3, padding='same', bias=False), shared, nn.ReLU(),
        shared, nn.Conv2d(4, 8, 3, stride=2, dilation=2, groups=2)).eval()
    x = torch.randn(2, 3, 20, 21)
    fast = optimize_for_inference(net, x, 'eager')
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
    assert not fast(x).requires_grad
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
