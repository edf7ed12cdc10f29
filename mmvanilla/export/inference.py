# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Faster inference inside PyTorch, for a network in deploy form."""
import copy

import torch
from torch import Tensor, nn

from ..layers import find_layers
from ..utils.errors import UserError
from .eager_cpu import pack_convs

BACKENDS = ('inductor', 'eager')


def optimize_for_inference(model: nn.Module,
                           example: Tensor,
                           backend: str = 'inductor') -> nn.Module:
    """Optimize a merged network for speed, with the same outputs.

    The returned network is for inference only: its weights must not be
    changed, it has no gradients, and it cannot be saved or exported. The given
    model is not changed.

    'inductor' computes in channels_last and compiles with the weights as
    constants, which Inductor packs once. It needs a C++ compiler, and compiles
    at once, for about a minute at most. For inputs of another shape than the
    example it compiles again, without packed weights. On a GPU it compiles
    with CUDA graphs; that was not measured.

    'eager' needs no compiler: it computes in channels_last, with each
    convolution's weight packed once by oneDNN. It is for CPUs and float32.

    Args:
        model (nn.Module): A network in deploy form, for example a backbone.
            It takes one tensor and returns a tensor, or a list or tuple of
            tensors.
        example (Tensor): An input, (N, C, H, W), with the batch size, image
            size, dtype and device that the network will be used with.
        backend (str): 'inductor' or 'eager'. Defaults to 'inductor'.

    Returns:
        nn.Module: Takes and returns what ``model`` does.

    Raises:
        UserError: If the model is not in deploy form, the backend is
            unknown, does not run on the device of the example, or has no
            compiler.

    Example:
        >>> switch_to_deploy(model)
        >>> fast = optimize_for_inference(model, torch.rand(1, 3, 224, 224))
        >>> outputs = fast(images)
    """
    if backend not in BACKENDS:
        raise UserError(f'backend must be one of {", ".join(BACKENDS)}, but '
                        f'got {backend}')
    layers = find_layers(model)
    if layers:
        raise UserError(
            f'optimize_for_inference takes a network in deploy form, but '
            f'"{next(iter(layers))}" is not merged: call switch_to_deploy '
            'first')
    if backend == 'eager' and example.device.type != 'cpu':
        raise UserError("backend 'eager' is for CPUs, but the example is on "
                        f'{example.device}')
    network = copy.deepcopy(model).eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)
    example = example.contiguous(memory_format=torch.channels_last)
    if backend == 'eager':
        pack_convs(network, example)
        return OptimizedNetwork(network)
    check_compiler()
    mode = 'reduce-overhead' if example.is_cuda else None
    optimized = OptimizedNetwork(
        torch.compile(network, mode=mode, dynamic=False))
    # Inductor reads `freezing` during tracing, when weights become constants.
    # An option of torch.compile is set only after tracing.
    with torch._inductor.config.patch(freezing=True):
        optimized(example)
    return optimized


class OptimizedNetwork(nn.Module):
    """Calls a network in channels_last, without gradients.

    Its outputs are in the default memory format, the only one that some
    compiled operators of mmcv read, for example RoIAlign on a CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, ...]:
        """(N, C, H, W) -> the outputs of the network."""
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = self.network(x)
        if isinstance(outputs, Tensor):
            return outputs.contiguous()
        maps = [out.contiguous() for out in outputs]
        if hasattr(outputs, '_make'):  # a namedtuple
            return outputs._make(maps)
        return type(outputs)(maps)


def check_compiler() -> None:
    """Refuse to compile without a C++ compiler.

    Raises:
        UserError: If Inductor finds none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise UserError(
            'Inductor needs a C++ compiler and found none: install g++, or '
            "set CXX; optimize_for_inference(..., backend='eager') needs "
            'none') from e
