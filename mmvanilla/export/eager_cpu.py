# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convolutions whose weights oneDNN packs once, for inference on a CPU."""
import torch
from torch import Tensor, nn


class PackedConv2d(nn.Module):
    """An ``nn.Conv2d`` for inference, with its weight in oneDNN's layout.

    ``nn.Conv2d`` reorders its weight at every call, which for a 1x1
    convolution of 4096 channels takes as long as the product itself. This
    layer keeps the reordered copy. It takes inputs of any size; oneDNN chooses
    the layout for the size of the example.

    Args:
        conv (nn.Conv2d): A convolution that :func:`_can_pack` accepts.
        example (Tensor): An input of it, (N, C, H, W).
    """

    def __init__(self, conv: nn.Conv2d, example: Tensor) -> None:
        super().__init__()
        self.args = (list(conv.padding), list(conv.stride),
                     list(conv.dilation), conv.groups)
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), *self.args,
            list(example.shape))
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), in channels_last."""
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.args, 'none', [], '')


def _can_pack(module: nn.Module) -> bool:
    """Whether a module is a convolution that oneDNN computes directly."""
    return (type(module) is nn.Conv2d and module.padding_mode == 'zeros'
            and not isinstance(module.padding, str)
            and module.weight.dtype == torch.float32
            and module.weight.device.type == 'cpu'
            and torch.backends.mkldnn.is_available())


@torch.no_grad()
def pack_convs(network: nn.Module, example: Tensor) -> None:
    """Replace the convolutions of a network by :class:`PackedConv2d`.

    Args:
        network (nn.Module): A network in eval mode, on a CPU; changed in
            place. Convolutions that it does not call as modules stay as they
            are.
        example (Tensor): An input of the network.
    """
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, args[0]))
        for name, module in network.named_modules() if _can_pack(module)
    ]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    packed: dict[nn.Module, PackedConv2d] = {}
    for name, x in inputs.items():
        conv = network.get_submodule(name)
        packed[conv] = PackedConv2d(conv, x)
    # A module that is used under two names is replaced under both.
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child in packed:
                setattr(parent, name, packed[child])
