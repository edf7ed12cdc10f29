# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The formats, a row each, and how a file is written in one of them."""
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from ..utils.requirements import require
from . import to_onnx, to_openvino, torch_programs
from .optimize import check_compiler


@dataclass(frozen=True)
class Format:
    """What a format needs, and what writes and opens a file."""

    suffix: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    # (network, example, path, metadata, calibration images) -> None
    write: Callable
    # (path, threads) -> a callable, images to arrays, and metadata in JSON
    open: Callable


FORMATS = dict(
    # ONNX Runtime's CPU provider has no bf16 convolution.
    onnx=Format('.onnx', ('onnx', 'onnxscript', 'onnxruntime'),
                ('fp32', 'fp16', 'int8'), to_onnx.write, to_onnx.open_file),
    openvino=Format('.xml', ('onnx', 'onnxscript', 'openvino'),
                    ('fp32', 'fp16', 'bf16', 'int8'), to_openvino.write,
                    to_openvino.open_file),
    pt2=Format('.pt2', (), ('fp32', 'bf16'), torch_programs.write_program,
               torch_programs.open_program),
    aoti=Format('.pt2', (), ('fp32', 'bf16'), torch_programs.write_compiled,
                torch_programs.open_compiled))


def check_format(format: str, precision: str,
                 opset: int | None = None) -> None:
    """Raise UserError if a format cannot be written here."""
    able = [f for f, row in FORMATS.items() if precision in row.precisions]
    if format not in FORMATS or not able:
        raise UserError(f'format must be one of {", ".join(FORMATS)}, and '
                        'precision one of fp32, fp16, bf16, int8, but got '
                        f'{format} and {precision}')
    if format not in able:
        raise UserError(f'{format} has no {precision}: use --format '
                        f'{" or ".join(able)}')
    require(*FORMATS[format].packages)
    if (format, precision) == ('openvino', 'int8'):
        require('nncf')
    if format == 'aoti':
        check_compiler()
    known = to_onnx.opsets() if format == 'onnx' else []
    if opset is not None and opset not in known:
        raise UserError(f'{format} has no opset {opset}: ' + (
            f'use 17 to {known[-1]}' if known else 'leave out --opset'))


def write(network: nn.Module, example: Tensor, path: Path, format: str,
          precision: str = 'fp32', dynamic_batch: bool = False,
          dynamic_size: bool = False, metadata: dict | None = None,
          calibration: list[Tensor] | None = None, preprocess: bool = False,
          opset: int | None = None) -> None:
    """Write a network, in eval mode, for inputs like the example."""
    n, c, *size = example.shape
    n, size = -1 if dynamic_batch else n, [-1, -1] if dynamic_size else size
    metadata = dict(metadata or {}, precision=precision,
                    input_shape=[n, c, *size])
    if format == 'onnx':
        metadata['opset'] = opset or to_onnx.OPSET
    if preprocess:
        metadata.update(input='uint8', input_shape=[n, *size, c])
        example, *calibration = (to_pixels(x, metadata)
                                 for x in (example, *(calibration or ())))
    with quiet(), torch.no_grad():
        FORMATS[format].write(network, example, Path(path), metadata,
                              calibration)


def to_pixels(images: Tensor, metadata: dict) -> Tensor:
    """Undo the normalization: to uint8, (N, H, W, C), in RGB."""
    mean, std = (images.new_tensor(metadata[key])[:, None, None]
                 for key in ('mean', 'std'))
    images = (images * std + mean).round().clamp(0, 255).byte()
    if metadata['channel_order'] == 'BGR':
        images = images.flip(1)
    # A program of aoti reads the memory as that of its example lay.
    return images.permute(0, 2, 3, 1).contiguous()


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what exporters and runtimes say beside their errors."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')
        for logger in map(logging.getLogger, (
                None, 'nncf', 'torch', 'torch.export')):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
