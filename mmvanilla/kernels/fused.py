# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Merged stages and heads as Triton kernels: two kernels a stage."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from ..models.backbones.vanillanet import VanillaStage
from ..models.heads.vanillanet_head import VanillaNetHead
from . import programs

DTYPES = (torch.float16, torch.bfloat16)
# From large to small: large ones read less, small ones keep more
# multiprocessors busy.
POINTWISE_TILES = [
    dict(BM=128, BN=256, BK=64, num_warps=8, num_stages=3),
    dict(BM=128, BN=128, BK=64, num_warps=4, num_stages=4),
    dict(BM=64, BN=128, BK=64, num_warps=4, num_stages=6),
    dict(BM=64, BN=64, BK=128, num_warps=4, num_stages=5),
    dict(BM=64, BN=64, BK=64, num_warps=4, num_stages=4),
]
ENOUGH = 96  # programs; an H200 has 132 multiprocessors


def fuse(network: nn.Module, example: Tensor) -> int:
    """Replace merged stages and heads of VanillaNet by kernels, in place.

    What the kernels do not cover stays as it is.

    Returns:
        int: How many modules were replaced.
    """
    kinds = {VanillaStage: FusedStage, VanillaNetHead: FusedHead}
    found = [(name, m) for name, m in network.named_modules()
             if type(m) in kinds and kinds[type(m)].covers(m)]
    for name, module in found:
        network.set_submodule(name, kinds[type(module)](module, example.dtype))
    return len(found)


def _launch(kernel: Callable, grid: tuple[int, ...], *args, **options) -> None:
    pdl = torch.cuda.is_available() and (
        torch.cuda.get_device_capability() >= (9, 0))
    if pdl:
        options['launch_pdl'] = True
    kernel[grid](*args, **options, PDL=pdl)


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device,
                       memory_format=torch.channels_last)


def pointwise_tiles(rows: int, cin: int, cout: int, memory: int) -> dict:
    """The largest tiles that fit and give enough programs."""
    fit = [t for t in POINTWISE_TILES if not cout % t['BN'] | cin % t['BK'] and
           2 * (t['BM'] + t['BN']) * t['BK'] * t['num_stages'] <= memory]
    return next((t for t in fit if triton.cdiv(rows, t['BM']) *
                 (cout // t['BN']) >= ENOUGH), fit[-1])


@torch.library.custom_op('mmvanilla::pointwise', mutates_args=())
def pointwise(x: Tensor, weight: Tensor, bias: Tensor, pool: bool) -> Tensor:
    """1x1 convolution, then 2x2 maximum, then ReLU."""
    (cout, cin), out = weight.shape, _pointwise_output(x, weight, bias, pool)
    rows = out[:, 0].numel() * (4 if pool else 1)
    memory = torch.cuda.get_device_properties(
        x.device).shared_memory_per_block_optin if x.is_cuda else 2**20
    tiles = pointwise_tiles(rows, cin, cout, memory)
    _launch(programs.pointwise_kernel,
            (triton.cdiv(rows, tiles['BM']), cout // tiles['BN']), x, weight,
            bias, out, rows, *out.shape[2:], *x.shape[2:], cin, cout, pool,
            **tiles)
    return out


@pointwise.register_fake
def _pointwise_output(x, weight, bias, pool):
    height, width = (size // (2 if pool else 1) for size in x.shape[2:])
    return _channels_last(weight, len(x), len(weight), height, width)


@torch.library.custom_op('mmvanilla::patches', mutates_args=())
def patches(x: Tensor, weight: Tensor, bias: Tensor, side: int) -> Tensor:
    """Convolution of ``side`` x ``side`` patches, then ReLU; any strides."""
    out = _patches_output(x, weight, bias, side)
    rows, cout = out[:, 0].numel(), len(weight)
    _launch(programs.patch_kernel, (triton.cdiv(rows, 64), cout // 64), x,
            weight, bias, out, rows, *out.shape[2:], *x.stride(), x.shape[1],
            side, cout, BM=64, BN=64, BK=weight.shape[1])
    return out


@patches.register_fake
def _patches_output(x, weight, bias, side):
    return _channels_last(weight, len(x), len(weight), x.shape[2] // side,
                          x.shape[3] // side)


@torch.library.custom_op('mmvanilla::depthwise', mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution that keeps the size; weight (S, S, C)."""
    out = torch.empty_like(x)
    n, channels, height, width = x.shape
    blocks = channels // 64
    tiles = triton.cdiv(height, 4) * triton.cdiv(width, 4)
    rows = 4 if n * tiles * blocks > 700 else 2
    grid = (triton.cdiv(height, rows) * triton.cdiv(width, 4), blocks, n)
    _launch(programs.depthwise_kernel, grid, x, weight, bias, out, height,
            width, channels, len(weight), ROWS=rows, COLS=4, BC=64,
            num_warps=1)
    return out


@depthwise.register_fake
def _depthwise_output(x, weight, bias):
    return torch.empty_like(x)


@torch.library.custom_op('mmvanilla::pooled_linear', mutates_args=())
def pooled_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean over the pixels, then a linear layer."""
    (n, cin, height, width), cout = x.shape, len(weight)
    pooled = torch.empty(n, cin, dtype=torch.float32, device=x.device)
    _launch(programs.mean_kernel, (cin // 32, n), x, pooled, height * width,
            cin, BP=64, BC=32)
    if n > 8:
        return F.linear(pooled.to(weight.dtype), weight, bias.to(weight.dtype))
    out = _pooled_linear_output(x, weight, bias)
    _launch(programs.linear_kernel, (triton.cdiv(cout, 8), n), pooled, weight,
            bias, out, cout, cin, BN=8, BK=512 if cin % 512 == 0 else 64)
    return out


@pooled_linear.register_fake
def _pooled_linear_output(x, weight, bias):
    return weight.new_empty(len(x), len(weight))


def _covers(conv: nn.Module) -> bool:
    return (type(conv) is nn.Conv2d and not conv.out_channels % 64
            and conv.groups == 1 and conv.bias is not None
            and conv.dilation == (1, 1) and conv.padding == (0, 0)
            and conv.kernel_size == conv.stride)


class FusedStage(nn.Module):
    """A merged stage: convolution to ReLU in a kernel, depthwise in one."""

    def __init__(self, stage: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.stage, conv, window = stage, stage.conv, stage.act.conv
        self.side, self.pool = conv.kernel_size[0], stage.pool is not None
        self.fused = _covers(conv) and (
            conv.in_channels % 64 == 0 and
            (not self.pool or type(stage.pool) is nn.MaxPool2d)
            if self.side == 1 else
            not self.pool and conv.weight[0].numel() <= 64)
        if self.fused:
            weight = conv.weight.detach().flatten(1).to(dtype)
            self.weight = F.pad(weight, (0, -weight.shape[1] % 64))
            self.bias = conv.bias.detach().float()
        self.window = window.weight.detach()[:, 0].permute(1, 2, 0).to(
            dtype).contiguous()
        self.window_bias = window.bias.detach().float()

    @staticmethod
    def covers(stage: nn.Module) -> bool:
        """Whether its activation is one that the kernels compute."""
        return (type(stage.act.act) is nn.ReLU and stage.act.act_num <= 3
                and stage.act.num_channels % 64 == 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), in channels_last."""
        if not self.fused:
            x = self.stage.conv(x)
            x = x if self.stage.pool is None else self.stage.pool(x)
            x = self.stage.act.act(x)
        elif self.side == 1:
            x = pointwise(x.contiguous(memory_format=torch.channels_last),
                          self.weight, self.bias, self.pool)
        else:
            x = patches(x, self.weight, self.bias, self.side)
        return depthwise(x.contiguous(memory_format=torch.channels_last),
                         self.window, self.window_bias)


class FusedHead(nn.Module):
    """A merged ``VanillaNetHead``: mean in a kernel, product in one."""

    def __init__(self, head: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        conv = head.classifier
        self.weight = conv.weight.detach().flatten(1).to(dtype).contiguous()
        self.bias = conv.bias.detach().float()

    @staticmethod
    def covers(head: nn.Module) -> bool:
        """Whether the kernels compute it."""
        return not head.in_channels % 64 and head.classifier.bias is not None

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The last map, (N, C, H, W) -> logits, (N, num_classes)."""
        return pooled_linear(
            feats[-1].contiguous(memory_format=torch.channels_last),
            self.weight, self.bias)
