# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The faster way is the same function, with the same gradient."""
import pytest
import torch
from torch import nn

from mmvanilla.layers import SeriesActivation
from mmvanilla.layers.conv import FEW_PIXELS, Conv2d


@pytest.mark.parametrize('side', [1, 7, 40])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('format',
                         [torch.channels_last, torch.contiguous_format])
def test_pointwise_is_a_convolution(side, bias, format):
    fast, plain = Conv2d(8, 12, 1, bias=bias), nn.Conv2d(8, 12, 1, bias=bias)
    plain.load_state_dict(fast.state_dict(), strict=True)
    assert (40 * 40 > FEW_PIXELS) and (7 * 7 * 2 < FEW_PIXELS)
    x = torch.randn(2, 8, side, side).contiguous(memory_format=format)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [conv(i) for conv, i in zip((fast, plain), inputs)]
    torch.testing.assert_close(*outputs)
    # What follows may call view(): the format is the plain one's.
    assert outputs[0].is_contiguous(memory_format=format)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)
    assert fast.weight.grad.is_contiguous()


@pytest.mark.parametrize('options', [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=1, padding=1),
    dict(kernel_size=1, groups=4),
    dict(kernel_size=3, padding=1, padding_mode='reflect')
])
def test_any_other_convolution_is_left_alone(options):
    fast, plain = Conv2d(8, 12, **options), nn.Conv2d(8, 12, **options)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)


def test_series_on_a_small_map_keeps_format_and_gradient():
    act = SeriesActivation(8)
    x = torch.randn(2, 8, 7, 7)
    inputs = [
        x.contiguous(memory_format=f).requires_grad_()
        for f in (torch.channels_last, torch.contiguous_format)
    ]
    outputs = [act(i) for i in inputs]
    torch.testing.assert_close(*outputs)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    assert outputs[1].is_contiguous()
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
