# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The arithmetic of reparameterization, as pure functions of tensors.

Everything is computed in float64 and cast back to the dtype of the first
weight, so that a merge in float32 rounds once and not at each step. Results
are contiguous and on the device of their inputs.
"""

import torch
from torch import Tensor


def fold_norm(weight: Tensor, bias: Tensor | None, running_mean: Tensor,
              running_var: Tensor, eps: float, gamma: Tensor | None,
              beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fold a batch normalization into the convolution before it.

    Args:
        weight (Tensor): Convolution weight, (out, in / groups, kh, kw).
        bias (Tensor, optional): Convolution bias, (out, ).
        running_mean (Tensor): Mean of the normalization, (out, ).
        running_var (Tensor): Variance of the normalization, (out, ).
        eps (float): Added to the variance by the normalization.
        gamma (Tensor, optional): Scale, (out, ). None where the
            normalization is not affine.
        beta (Tensor, optional): Shift, (out, ). None likewise.

    Returns:
        tuple[Tensor, Tensor]: Weight, shaped as ``weight``, and bias,
        (out, ), of the convolution that computes the same function.
    """
    dtype = weight.dtype
    scale = (_exact(running_var) + eps).rsqrt()
    if gamma is not None:
        scale = scale * _exact(gamma)
    shift = -_exact(running_mean)
    if bias is not None:
        shift = shift + _exact(bias)
    shift = shift * scale
    if beta is not None:
        shift = shift + _exact(beta)
    folded = _exact(weight) * scale.reshape(-1, 1, 1, 1)
    return _cast(folded, dtype), _cast(shift, dtype)


def merge_convs(weight1: Tensor,
                bias1: Tensor | None,
                weight2: Tensor,
                bias2: Tensor | None,
                groups: int = 1) -> tuple[Tensor, Tensor | None]:
    """Merge a convolution and the 1x1 convolution after it into one.

    With ``W1`` the first weight and ``W2`` the second, this is
    ``W[o, i, k, l] = sum_m W2[o, m] W1[m, i, k, l]`` and
    ``b = W2 b1 + b2`` (VanillaNet, arXiv 2305.12972, equations 2 to 4),
    group by group.

    Args:
        weight1 (Tensor): (mid, in / groups, kh, kw).
        bias1 (Tensor, optional): (mid, ).
        weight2 (Tensor): (out, mid / groups, 1, 1).
        bias2 (Tensor, optional): (out, ).
        groups (int): Groups of both convolutions. Defaults to 1.

    Returns:
        tuple[Tensor, Tensor | None]: Weight (out, in / groups, kh, kw) and
        bias (out, ) of the merged convolution, which has the stride,
        padding, dilation and groups of the first. The bias is None where
        neither has one.
    """
    dtype = weight1.dtype
    first = _exact(weight1).reshape(groups, -1, weight1[0].numel())
    second = _exact(weight2).reshape(groups, -1, first.shape[1])
    weight = torch.bmm(second, first).reshape(-1, *weight1.shape[1:])

    bias = None
    if bias1 is not None:
        bias = torch.bmm(second, _exact(bias1).reshape(groups, -1, 1))
        bias = bias.reshape(-1)
    if bias2 is not None:
        bias = _exact(bias2) if bias is None else bias + _exact(bias2)
    return _cast(weight, dtype), None if bias is None else _cast(bias, dtype)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous()
