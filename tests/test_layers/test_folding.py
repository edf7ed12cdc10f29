# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from torch import Tensor, nn

from mmvanilla.layers.folding import fold_batch_norm, merge_convs


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_merge_is_the_papers_einsum_with_one_rounding(dtype):
    weight1 = torch.randn(64, 3, 2, 2).to(dtype)
    weight2 = torch.randn(4, 64, 1, 1).to(dtype)
    weight, bias = merge_convs(weight1, weight1[:, 0, 0, 0], weight2, None)
    expected = torch.einsum('om,mikl->oikl', weight2[:, :, 0, 0].double(),
                            weight1.double())
    assert weight.dtype == bias.dtype == dtype
    assert torch.equal(weight, expected.to(dtype))


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format,
                                           torch.channels_last])
def test_the_memory_format_stays(kernel_size, memory_format):
    conv = nn.Conv2d(4, 8, kernel_size).to(memory_format=memory_format)
    # The strides of a 1x1 weight tell torch's convolution the format.
    expected = torch.empty(
        6, 4, kernel_size, kernel_size).to(memory_format=memory_format)
    folded = fold_batch_norm(conv, nn.BatchNorm2d(8))[0]
    assert folded.stride() == conv.weight.stride()
    merged = merge_convs(conv.weight, None, torch.randn(6, 8, 1, 1), None)[0]
    assert merged.stride() == expected.stride()
    # Weights that are parts of other tensors give whole ones.
    part = torch.randn(8, 9, 3, 3)[:, ::2]
    merged = merge_convs(part, None, torch.randn(6, 8, 1, 1), None)[0]
    assert merged.is_contiguous()


class WithoutFloat64(Tensor):
    """A tensor of a device that refuses float64, as MPS does."""

    def double(self):
        raise TypeError('the device does not support float64')

    def cpu(self):
        return self.as_subclass(Tensor)


def test_a_device_without_float64():
    weights = torch.randn(8, 4, 3, 3), torch.randn(6, 8, 1, 1)
    there = [x.as_subclass(WithoutFloat64) for x in weights]
    merged = merge_convs(there[0], None, there[1], None)[0]
    assert type(merged) is WithoutFloat64
    assert torch.equal(merged.cpu(),
                       merge_convs(weights[0], None, weights[1], None)[0])
