# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A network as a program of ``torch.export`` and as an ONNX model."""
import copy

import torch
from torch import Tensor, nn

from ..utils.errors import UserError

OPSET = 18
DynamicShapes = tuple[dict[int, torch.export.Dim]] | None


def dynamic_shapes(batch: bool, size: bool) -> DynamicShapes:
    """The ``dynamic_shapes`` of ``torch.export`` for an input (N, C, H, W).

    Args:
        batch (bool): Whether N is dynamic.
        size (bool): Whether H and W are dynamic, from 32 on.
    """
    dims = {}
    if batch:
        dims[0] = torch.export.Dim('batch', min=1)
    if size:
        dims[2] = torch.export.Dim('height', min=32)
        dims[3] = torch.export.Dim('width', min=32)
    return (dims, ) if dims else None


def export_program(network: nn.Module,
                   example: Tensor,
                   shapes: DynamicShapes,
                   precision: str = 'fp32') -> torch.export.ExportedProgram:
    """Run ``torch.export`` on a network.

    Args:
        network (nn.Module): In eval mode.
        example (Tensor): An input, (N, C, H, W); N at least 2 where the batch
            is dynamic, since 1 would be taken for a constant.
        shapes (DynamicShapes): From :func:`dynamic_shapes`.
        precision (str): 'fp32', or 'bf16' to compute in bfloat16, with inputs
            and outputs in float32. Defaults to 'fp32'.

    Raises:
        UserError: If the network cannot be exported.
    """
    if precision == 'bf16':
        network = InBfloat16(network)
    try:
        program = torch.export.export(
            network, (example, ),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True)
    except (RuntimeError, ValueError, torch._dynamo.exc.UserError) as e:
        reason = str(e).strip().split('\n')[0]
        raise UserError(f'torch.export cannot export this model: {reason}'
                        ) from e
    # torch.export asserts that a pooling leaves no row over at the border, so
    # that only even sizes would be accepted. The pooling drops that row.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


class InBfloat16(nn.Module):
    """A copy of a network in bfloat16, with inputs and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> the outputs of the network."""
        return [out.float() for out in self.network(x.bfloat16())]


def onnx_model(network: nn.Module, example: Tensor, shapes: DynamicShapes):
    """A network as an ``onnx.ModelProto``, with its weights inside.

    Its input is called ``input``; its outputs are called as the network's
    ``output_names``. The arguments are those of :func:`export_program`,
    without the precision.

    Raises:
        UserError: If the network cannot be exported.
    """
    network = copy.deepcopy(network)
    _fix_adaptive_pools(network, example, bool(shapes and 2 in shapes[0]))
    return torch.onnx.export(
        export_program(network, example, shapes), (example, ),
        dynamo=True,
        input_names=['input'],
        output_names=list(network.output_names),
        opset_version=OPSET,
        verbose=False).model_proto


class FixedMaxPool2d(nn.Module):
    """``nn.AdaptiveMaxPool2d`` for inputs of one size.

    ONNX has no operator for it, and its windows differ in size. Here each
    window is padded to the size of the largest by repeating its last row and
    column, which does not change the maximum.

    Args:
        input_size (tuple[int, int]): Height and width of the input.
        output_size (tuple[int, int]): Height and width of the output.
    """

    def __init__(self, input_size, output_size) -> None:
        super().__init__()
        rows, columns = map(_windows, input_size, output_size)
        self.register_buffer('rows', rows)
        self.register_buffer('columns', columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        x = x[:, :, self.rows].amax(3)  # from (N, C, H', window, W)
        return x[:, :, :, self.columns].amax(4)


def _windows(size_in: int, size_out: int) -> Tensor:
    """Indices of each window, (size_out, largest window)."""
    i = torch.arange(size_out)
    start = i * size_in // size_out
    stop = -(-(i + 1) * size_in // size_out)
    index = start[:, None] + torch.arange(int((stop - start).max()))
    return index.minimum(stop[:, None] - 1)


def _fix_adaptive_pools(network: nn.Module, example: Tensor,
                        is_size_dynamic: bool) -> None:
    pools = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.AdaptiveMaxPool2d)
    }
    if not pools:
        return
    if is_size_dynamic:
        raise UserError(
            f'"{next(iter(pools))}" is an adaptive max pooling, for which '
            'ONNX has no operator: leave out --dynamic-size, or take --format '
            'pt2')
    fixed = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, name=name: fixed.update({
                name: FixedMaxPool2d(args[0].shape[2:], out.shape[2:])
            })) for name, module in pools.items()
    ]
    network(example)
    for hook in hooks:
        hook.remove()
    for name, module in fixed.items():
        network.set_submodule(name, module)
