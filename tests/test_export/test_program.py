# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from narrow import NARROW_ARCHS, needs, relative_error, vanillanet
from torch import nn

from mmvanilla.export.backends import open_exported, write
from mmvanilla.export.network import Network
from mmvanilla.export.program import FixedMaxPool2d
from mmvanilla.utils.errors import UserError


@pytest.mark.parametrize('size_in, size_out', [
    ((75, 75), (38, 38)), ((38, 37), (19, 19)), ((19, 20), (10, 10)),
    ((8, 8), (4, 4)), ((5, 3), (7, 3)), ((9, 11), (1, 4))
])
def test_fixed_max_pool_is_the_adaptive_one(size_in, size_out):
    x = torch.randn(2, 3, *size_in)
    assert torch.equal(
        FixedMaxPool2d(size_in, size_out)(x),
        nn.AdaptiveMaxPool2d(size_out)(x))


def test_adaptive_pooling_in_onnx(tmp_path):
    needs('onnx', 'onnxscript', 'onnxruntime')
    net = Network(vanillanet(NARROW_ARCHS['13-x1.5-ada']))
    x = torch.randn(1, 3, 224, 224)
    write(net, x, tmp_path / 'net.onnx', 'onnx', dynamic_batch=True)
    run = open_exported(tmp_path / 'net.onnx', 'onnx')
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(run(x), net(x)) < 1e-5
    assert isinstance(net.backbone.stages[1].pool, nn.AdaptiveMaxPool2d)
    with pytest.raises(UserError, match='leave out --dynamic-size'):
        write(net, x, tmp_path / 'net.onnx', 'onnx', dynamic_size=True)
