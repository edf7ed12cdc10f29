# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Batch norms that fold into the convolution before them."""
from contextlib import contextmanager

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .folding import fold_norm


def build_batch_norm(norm_cfg: dict | None,
                     channels: int) -> nn.Module | None:
    """Build a norm that can be folded into a convolution.

    Args:
        norm_cfg (dict, optional): Config of a batch norm. None builds none.
        channels (int): Number of channels.

    Returns:
        nn.Module | None: The norm; None if ``norm_cfg`` is None.

    Raises:
        ValueError: If the norm is not a batch norm or has no running
            statistics.
    """
    if norm_cfg is None:
        return None
    _, norm = build_norm_layer(norm_cfg, channels)
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f'norm_cfg must be a batch norm with running statistics, which '
            f'alone folds into a convolution, but got {norm_cfg}')
    return norm


def fold_batch_norm(weight: Tensor, bias: Tensor | None,
                    norm: _BatchNorm | None
                    ) -> tuple[Tensor, Tensor | None]:
    """Fold a batch norm module into a convolution's tensors.

    They are returned unchanged if ``norm`` is None or an ``nn.Identity``,
    which mmcv's ``fuse_conv_bn`` puts in the place of a folded norm. Shapes
    are those of :func:`fold_norm`.
    """
    if norm is None or isinstance(norm, nn.Identity):
        return weight, bias
    return fold_norm(weight, bias, norm.running_mean, norm.running_var,
                     norm.eps, norm.weight, norm.bias)


def reset_to_identity(norm: _BatchNorm) -> None:
    """Set a batch norm so that in eval mode its output is its input."""
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        if norm.affine:
            norm.weight.fill_(1)
            norm.bias.zero_()


@contextmanager
def keep_running_stats(stage: nn.Module):
    """Recompute a stage without a second update of running statistics."""
    norms = [
        m for m in stage.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.training
    ]
    kept = [(norm.momentum, norm.num_batches_tracked.clone())
            for norm in norms]
    for norm in norms:
        # Not track_running_stats = False: torch checks that the forward pass
        # and its recomputation save the same tensors, which include the
        # running statistics.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
