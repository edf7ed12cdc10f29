# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN reorders the weight at every call. From about this many pixels on, the
# product itself is long enough to hide it; below, a plain product is faster.
FEW_PIXELS = 512


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that takes the faster way to the same numbers on a CPU.

    A 1x1 convolution of a small ``channels_last`` feature map is a matrix
    product over its pixels, and is computed as one. All else (a large map,
    another format, dtype, kernel or device) is a plain convolution, and so is
    every graph that is exported, compiled, traced or scripted.

    The name is that of its base on purpose: initializers look for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """What ``forward`` does, within reach of a scripted subclass."""
        if not torch.jit.is_scripting():
            if self._is_short_product(x):
                x = F.linear(
                    x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
                return x.permute(0, 3, 1, 2)
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _is_short_product(self, x: Tensor) -> bool:
        return (self.kernel_size == (1, 1) and self.stride == (1, 1)
                and self.padding == (0, 0) and self.groups == 1
                and has_few_pixels(x))


@torch.jit.ignore
def has_few_pixels(x: Tensor) -> bool:
    """Whether ``x`` is a small ``channels_last`` map, computed right here."""
    return (is_eager_on_cpu(x) and x.dim() == 4
            and x.shape[0] * x.shape[2] * x.shape[3] < FEW_PIXELS
            and x.is_contiguous(memory_format=torch.channels_last))


@torch.jit.ignore
def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is computed here and now, in float32, on a CPU.

    A graph that is recorded must stay plain: what runs it makes its own
    choice of formats and kernels.
    """
    return (isinstance(x, Tensor) and x.is_cpu and x.dtype == torch.float32
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling())
