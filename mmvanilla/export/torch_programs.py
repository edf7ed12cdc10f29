# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Programs of ``torch.export`` (pt2), or compiled by Inductor (aoti)."""
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import UserError

METADATA = 'metadata.json'
TYPES = dict(bf16=torch.bfloat16, fp16=torch.float16)


def export_program(network: nn.Module, example: Tensor, metadata: dict):
    """Run ``torch.export``; -1 in ``input_shape`` is any number."""
    if metadata['precision'] in TYPES:
        network = InType(network, TYPES[metadata['precision']])
    input_shape, dims, height = metadata['input_shape'], {}, 2
    if metadata.get('input') == 'uint8':
        network, height = FromPixels(network, metadata), 1
    if input_shape[0] == -1:
        dims[0] = torch.export.Dim('batch', min=1)
        # torch.export assumes that a batch of one is a constant.
        example = torch.cat([example, example])
    if input_shape[height] == -1:
        dims[height] = torch.export.Dim('height', min=32)
        dims[height + 1] = torch.export.Dim('width', min=32)
    try:
        program = torch.export.export(
            network, (example, ), strict=False,
            dynamic_shapes=(dims, ) if dims else None,
            prefer_deferred_runtime_asserts_over_guards=True)
    except Exception as e:  # whatever a model's code does while it is traced
        how = ' with --dynamic-size' if height in dims else ''
        raise UserError(f'torch.export cannot export this model{how}: '
                        + str(e).strip().split('\n')[0]) from e
    # torch.export asserts that a pooling leaves no row over at the border, so
    # that only even sizes would be accepted; but the pooling drops that row.
    # The operator of these assertions has no public name.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


class InType(nn.Module):
    """A copy of a network in another type, with float32 inputs and outputs."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> the outputs of the network."""
        return [out.float() if out.is_floating_point() else out
                for out in self.network(x.to(self.dtype))]


class FromPixels(nn.Module):
    """A network that takes uint8 images, (N, H, W, C), and normalizes them."""

    def __init__(self, network: nn.Module, metadata: dict) -> None:
        super().__init__()
        self.network, self.order = network, metadata['channel_order']
        self.mean, self.std = (torch.tensor(metadata[key])[:, None, None]
                               for key in ('mean', 'std'))

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB or gray -> the outputs of the network."""
        x = images.permute(0, 3, 1, 2).float()
        if self.order == 'BGR':
            x = x.flip(1)
        return self.network((x - self.mean) / self.std)


def write_program(network: nn.Module, example: Tensor, path: Path,
                  metadata: dict, calibration: None) -> None:
    """Write pt2; see :func:`mmvanilla.export.formats.write`."""
    torch.export.save(export_program(network, example, metadata), str(path),
                      extra_files={METADATA: json.dumps(metadata)})


def open_program(path: Path, threads: int | None):
    """Open pt2; see :class:`mmvanilla.export.formats.Format`."""
    files = {METADATA: ''}
    program = torch.export.load(str(path), extra_files=files)
    return program.module(), {
        key: json.dumps(value)
        for key, value in json.loads(files[METADATA]).items()}


def write_compiled(network: nn.Module, example: Tensor, path: Path,
                   metadata: dict, calibration: None) -> None:
    """Write aoti; see :func:`mmvanilla.export.formats.write`."""
    # PyTorch documents this function, and that to load, in a private module.
    torch._inductor.aoti_compile_and_package(
        export_program(network, example, metadata), package_path=str(path),
        inductor_configs={
            'freezing': True,  # weights are packed once, when compiling
            'aot_inductor.metadata': {
                key: json.dumps(value) for key, value in metadata.items()}})


def open_compiled(path: Path, threads: int | None):
    """Open aoti; see :class:`mmvanilla.export.formats.Format`."""
    # torch 2.10 uses this module without importing it.
    import torch._inductor.codecache  # noqa: F401
    program = torch._inductor.aoti_load_package(str(path))
    return program, {
        key: value for key, value in program.loader.get_metadata().items()
        if not key.startswith('AOTI_')}
