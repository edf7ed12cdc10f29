# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Programs of ``torch.export``, which Python and PyTorch run."""
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .program import DynamicShapes, export_program

SUFFIX = '.pt2'
PACKAGES = ()
PRECISIONS = ('fp32', 'bf16')


def write(network: nn.Module, example: Tensor, path: Path,
          shapes: DynamicShapes, metadata: dict, precision: str,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.backends.write`."""
    torch.export.save(
        export_program(network, example, shapes, precision),
        str(path),
        extra_files={'metadata.json': json.dumps(metadata)})


def open_file(path: Path, precision: str,
              threads: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Open a file; see :func:`mmvanilla.export.backends.open_exported`."""
    return torch.export.load(str(path)).module()


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that :func:`write` was given."""
    files = {'metadata.json': ''}
    torch.export.load(str(path), extra_files=files)
    return json.loads(files['metadata.json'])
