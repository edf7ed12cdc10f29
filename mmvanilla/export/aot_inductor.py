# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Programs compiled ahead of time, which run without Python.

The file holds a library for the instruction set of this machine's CPU. C++
opens it with ``torch::inductor::AOTIModelPackageLoader``.
"""
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from .program import DynamicShapes, export_program

SUFFIX = '.pt2'
PACKAGES = ()
PRECISIONS = ('fp32', 'bf16')


def write(network: nn.Module, example: Tensor, path: Path,
          shapes: DynamicShapes, metadata: dict, precision: str,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.backends.write`."""
    torch._inductor.aoti_compile_and_package(
        export_program(network, example, shapes, precision),
        package_path=str(path),
        inductor_configs={
            'freezing': True,  # weights are packed once, when compiling
            'aot_inductor.metadata':
            {key: json.dumps(value)
             for key, value in metadata.items()},
        })


def open_file(path: Path, precision: str,
              threads: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Open a file; see :func:`mmvanilla.export.backends.open_exported`."""
    program = _load(path)
    wanted = _metadata(program)['input_shape']

    def run(x: Tensor) -> list[Tensor]:
        # The library reads the memory without checking the shape.
        if any(a not in (-1, b) for a, b in zip(wanted, x.shape,
                                                strict=True)):
            raise UserError(f'{path} takes an input of shape {wanted}, where '
                            f'-1 is any number, but got {list(x.shape)}')
        return program(x)

    return run


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that :func:`write` was given."""
    return _metadata(_load(path))


def _load(path: Path) -> Callable:
    # torch 2.10 uses this module without importing it.
    import torch._inductor.codecache  # noqa: F401
    return torch._inductor.aoti_load_package(str(path))


def _metadata(program) -> dict[str, object]:
    entries = program.loader.get_metadata()
    return {
        key: json.loads(value)
        for key, value in entries.items() if not key.startswith('AOTI_')
    }
