# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F

from mmvanilla.layers.folding import fold_norm, merge_convs


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
def test_fold_norm(affine, with_bias):
    torch.manual_seed(0)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64) if with_bias else None
    mean, var = torch.randn(6).double(), torch.rand(6).double() + 0.1
    gamma, beta = torch.randn(2, 6).double() if affine else (None, None)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    expected = F.batch_norm(
        F.conv2d(x, weight, bias, groups=2), mean, var, gamma, beta, eps=1e-3)
    folded = fold_norm(weight, bias, mean, var, 1e-3, gamma, beta)
    torch.testing.assert_close(F.conv2d(x, *folded, groups=2), expected)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('biases', [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_merge_convs(groups, biases):
    torch.manual_seed(0)
    weight1 = torch.randn(12, 8 // groups, 3, 3, dtype=torch.float64)
    weight2 = torch.randn(16, 12 // groups, 1, 1, dtype=torch.float64)
    bias1 = torch.randn(12).double() if biases[0] else None
    bias2 = torch.randn(16).double() if biases[1] else None
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    conv = dict(stride=2, padding=2, dilation=2, groups=groups)
    expected = F.conv2d(
        F.conv2d(x, weight1, bias1, **conv), weight2, bias2, groups=groups)
    weight, bias = merge_convs(weight1, bias1, weight2, bias2, groups)
    assert weight.shape == (16, 8 // groups, 3, 3)
    assert (bias is None) == (biases == (0, 0))
    torch.testing.assert_close(F.conv2d(x, weight, bias, **conv), expected)


def test_merge_is_the_papers_einsum():
    torch.manual_seed(0)
    weight1, weight2 = torch.randn(5, 3, 2, 2), torch.randn(4, 5, 1, 1)
    weight, _ = merge_convs(weight1, None, weight2, None)
    expected = torch.einsum('om,mikl->oikl', weight2[:, :, 0, 0].double(),
                            weight1.double())
    # One rounding, at the end: as close as float32 gets.
    assert torch.equal(weight, expected.float())
    assert weight.is_contiguous()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_costs_one_rounding(dtype):
    torch.manual_seed(0)
    weight1 = torch.randn(64, 64, 1, 1).to(dtype)
    weight2 = torch.randn(64, 64, 1, 1).to(dtype)
    weight, bias = merge_convs(weight1, weight1[:, 0, 0, 0], weight2, None)
    exact = (weight2.double().flatten(1) @ weight1.double().flatten(1))
    assert weight.dtype == bias.dtype == dtype
    assert torch.equal(weight.flatten(1), exact.to(dtype))
