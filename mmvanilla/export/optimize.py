# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Faster inference inside PyTorch, for a network in deploy form."""
import copy
import os
import shutil
import sys
from contextlib import ExitStack
from importlib.util import find_spec

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..layers import find_layers
from ..utils.errors import UserError


def optimize_for_inference(model: nn.Module, example: Tensor,
                           backend: str = 'inductor') -> nn.Module:
    """Optimize a merged network for speed, with the same outputs.

    The returned network computes in channels_last, and is for inference: its
    weights must not be changed, it has no gradients, and it cannot be saved or
    exported. The backends:

    - 'inductor' compiles at once, for about a minute at most, with constant
      weights, which it packs; on a GPU with CUDA graphs. It needs a C++
      compiler. For inputs of another shape it compiles again, unpacked.
    - 'eager' is for CPUs and float32: oneDNN packs each convolution's weight.
    - 'triton' is for GPUs and 16 bit: each stage of a VanillaNet becomes two
      kernels, and the network one CUDA graph for inputs of the example's
      shape, which serves one stream at a time.

    Args:
        model (nn.Module): A network in deploy form, from one tensor to a
            tensor, or a list or tuple of tensors. It is not changed.
        example (Tensor): An input, (N, C, H, W), with the batch size, image
            size, dtype and device that the network will be used with.
        backend (str): Defaults to 'inductor'.

    Returns:
        nn.Module: Takes and returns what ``model`` does.

    Raises:
        UserError: If the model is not in deploy form, or the backend is
            unknown, not for this example, or lacks what it needs.
    """
    if backend not in ('inductor', 'eager', 'triton'):
        raise UserError('backend must be one of inductor, eager, triton, but '
                        f'got {backend}')
    layers = find_layers(model)
    if layers:
        raise UserError('the network must be in deploy form, but '
                        f'"{next(iter(layers))}" is not merged: call '
                        'switch_to_deploy first')
    half = example.dtype in (torch.float16, torch.bfloat16)
    if backend == 'eager' and example.device.type != 'cpu' or (
            backend == 'triton' and not (example.is_cuda and half)):
        raise UserError(
            f"backend '{backend}' is for "
            + ('CPUs' if backend == 'eager' else 'GPUs and 16 bit')
            + f', but the example is {example.dtype} on {example.device}')
    network = copy.deepcopy(model).eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)
    example = example.contiguous(memory_format=torch.channels_last)
    if backend == 'eager':
        return _pack_convs(OptimizedNetwork(network), example)
    if backend == 'triton':
        if find_spec('triton') is None:
            raise UserError("backend 'triton' needs the package triton")
        from ..kernels.fused import fuse
        if not fuse(network, example):
            raise UserError("backend 'triton' is for VanillaNets, and a "
                            f'{type(model).__name__} has no stage of one')
        return GraphedNetwork(network, example)
    check_compiler()
    mode = 'reduce-overhead' if example.is_cuda else None
    optimized = OptimizedNetwork(
        torch.compile(network, mode=mode, dynamic=False))
    # Inductor reads `freezing` during tracing, when weights become constants.
    # An option of torch.compile, the public way, is set only after tracing.
    from torch._inductor import config
    with config.patch(freezing=True):
        optimized(example)
    return optimized


def check_compiler() -> None:
    """Raise UserError if there is no C++ compiler for Inductor."""
    default = dict(darwin='clang++', win32='cl').get(sys.platform, 'g++')
    if not shutil.which(os.environ.get('CXX', default)):
        raise UserError(
            'Inductor needs a C++ compiler and found none: install g++, or '
            "set CXX; optimize_for_inference(..., backend='eager') needs none")


class OptimizedNetwork(nn.Module):
    """Calls a network in channels_last, without gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, ...]:
        """(N, C, H, W) -> the outputs of the network."""
        outputs = self.network(
            x.contiguous(memory_format=torch.channels_last))
        # Some compiled operators of mmcv, for example RoIAlign on a CPU, read
        # the default memory format only. On a GPU, the next replay of a graph
        # would overwrite an output that is not a copy.
        return apply_to(outputs, torch.is_tensor,
                        _copy if x.is_cuda else Tensor.contiguous)


class GraphedNetwork(nn.Module):
    """Replays a CUDA graph for inputs that are like the example."""

    @torch.no_grad()
    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.network, self.example = OptimizedNetwork(network), example.clone()
        self.graph = torch.cuda.CUDAGraph()
        # The first calls compile and choose algorithms.
        stream = torch.cuda.Stream(example.device)
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                network(self.example)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        with torch.cuda.device(example.device), torch.cuda.graph(self.graph):
            self.outputs = network(self.example)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, ...]:
        """(N, C, H, W) -> the outputs of the network."""
        like = self.example
        if (x.shape, x.dtype, x.device) != (like.shape, like.dtype,
                                            like.device):
            return self.network(x)
        like.copy_(x)
        self.replay()
        return apply_to(self.outputs, torch.is_tensor, _copy)

    def replay(self) -> None:
        """Compute again what the last input gave; benchmarks time it."""
        self.graph.replay()


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


class PackedConv2d(nn.Module):
    """An ``nn.Conv2d`` that does not reorder its weight at every call."""

    def __init__(self, conv: nn.Conv2d, example: Tensor) -> None:
        super().__init__()
        self.args = (list(conv.padding), list(conv.stride),
                     list(conv.dilation), conv.groups)
        self.weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), *self.args, list(example.shape))
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), in channels_last."""
        # torch.mkldnn_convolution, the public way, computes the same but
        # copies the output to the default memory format.
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.args, 'none', [], '')


@torch.no_grad()
def _pack_convs(network: nn.Module, example: Tensor) -> nn.Module:
    inputs: dict[nn.Module, Tensor] = {}
    with ExitStack() as stack:
        for module in network.modules():
            if (type(module) is not nn.Conv2d or module.padding_mode != 'zeros'
                    or isinstance(module.padding, str)
                    or module.weight.dtype != torch.float32
                    or not torch.backends.mkldnn.is_available()):
                continue
            hook = module.register_forward_pre_hook(
                lambda conv, args: inputs.update({conv: args[0]}))
            stack.callback(hook.remove)
        network(example)
    packed = {conv: PackedConv2d(conv, x) for conv, x in inputs.items()}
    # A module that is used under two names is replaced under both.
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in packed:
            network.set_submodule(name, packed[module])
    return network
