# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The formats: writing a file, opening it, reading its metadata."""
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from . import aot_inductor, onnx, openvino, torch_export
from .inference import check_compiler
from .program import dynamic_shapes

# --format: the module that writes and opens it.
BACKENDS = dict(
    onnx=onnx, openvino=openvino, pt2=torch_export, aoti=aot_inductor)
PRECISIONS = ('fp32', 'bf16', 'int8')


def check_backend(format: str, precision: str) -> None:
    """Refuse a format that cannot be written here.

    Args:
        format (str): 'onnx', 'openvino', 'pt2' or 'aoti'.
        precision (str): 'fp32', 'bf16' or 'int8'.

    Raises:
        UserError: If format or precision are unknown or do not go together,
            or a package or the compiler is missing.
    """
    if format not in BACKENDS or precision not in PRECISIONS:
        raise UserError(
            f'format must be one of {", ".join(BACKENDS)} and precision one '
            f'of {", ".join(PRECISIONS)}, but got {format} and {precision}')
    backend = BACKENDS[format]
    if precision not in backend.PRECISIONS:
        able = [f for f, b in BACKENDS.items() if precision in b.PRECISIONS]
        raise UserError(f'{format} has no {precision}: take --format '
                        f'{" or ".join(able)}')
    packages = list(backend.PACKAGES)
    if (format, precision) == ('openvino', 'int8'):
        packages.append('nncf')
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(
            f'{format} in {precision} needs {", ".join(missing)}, which the '
            "extra `export` installs: pip install -e '.[export]'")
    if format == 'aoti':
        check_compiler()


def write(network: nn.Module,
          example: Tensor,
          path: Path,
          format: str,
          precision: str = 'fp32',
          dynamic_batch: bool = False,
          dynamic_size: bool = False,
          metadata: dict | None = None,
          calibration: list[Tensor] | None = None) -> None:
    """Write a network in one of the formats, with its metadata.

    ``input_shape`` is added to the metadata: [N, C, H, W], with -1 for what
    is dynamic.

    Args:
        network (Network): In eval mode; takes (N, C, H, W), returns a list of
            tensors.
        example (Tensor): An input, (1, C, H, W).
        path (Path): Where to write. OpenVINO writes the weights beside it,
            with the suffix ``.bin``.
        format (str): 'onnx', 'openvino', 'pt2' or 'aoti'.
        precision (str): 'fp32', 'bf16' or 'int8'. Defaults to 'fp32'.
        dynamic_batch (bool): Whether the file takes any number of images.
            Defaults to False: as many as the example has.
        dynamic_size (bool): Whether the file takes images of any size.
            Defaults to False: those of the example's size.
        metadata (dict, optional): Values that JSON can hold. Defaults to
            None: no more than ``input_shape``.
        calibration (list[Tensor], optional): Inputs, each (1, C, H, W), to
            calibrate int8 on; needed for int8 only. Defaults to None.
    """
    shape = list(example.shape)
    shape[0] = -1 if dynamic_batch else shape[0]
    shape[2:] = (-1, -1) if dynamic_size else shape[2:]
    if dynamic_batch:
        # torch.export takes a batch of one for a constant.
        example = torch.cat([example, example])
    with warnings.catch_warnings(), torch.no_grad():
        # The exporters warn of deprecations in each other, and of operators
        # that the network does not have.
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            BACKENDS[format].write(
                network, example, Path(path),
                dynamic_shapes(dynamic_batch, dynamic_size),
                dict(metadata or {}, input_shape=shape), precision,
                calibration)
        finally:
            logging.disable(logging.NOTSET)


def open_exported(path: str | Path,
                  format: str,
                  precision: str = 'fp32',
                  threads: int | None = None
                  ) -> Callable[[Tensor], list[Tensor]]:
    """Open an exported file in its own runtime.

    Args:
        path (Path): What :func:`write` wrote.
        format (str): Its format.
        precision (str): Its precision. Defaults to 'fp32'.
        threads (int, optional): Threads to compute with. Defaults to None:
            the runtime's own default. Not read for pt2 and aoti, which use
            those of ``torch.set_num_threads``.

    Returns:
        Callable: From (N, C, H, W) to a list of tensors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return BACKENDS[format].open_file(Path(path), precision, threads)


def read_metadata(path: str | Path, format: str) -> dict[str, object]:
    """Read what an exported file tells of itself.

    Args:
        path (str | Path): The file. OpenVINO needs its weights beside it.
        format (str): 'onnx', 'openvino', 'pt2' or 'aoti'.

    Returns:
        dict[str, object]: ``labels``, ``mean`` and ``std`` (of pixels from 0
        to 255), ``channel_order``, ``input_size`` (height and width, in
        pixels), ``input_shape`` ([N, C, H, W], -1 where any number is taken),
        ``part``, ``precision``, ``version`` and, of a detector, the settings
        of its ``test_cfg``.

    Raises:
        UserError: If the format is unknown, or the file cannot be read as a
            file of that format that mmvanilla wrote.
    """
    if format not in BACKENDS:
        raise UserError(f'format must be one of {", ".join(BACKENDS)}, but '
                        f'got {format}')
    if not Path(path).is_file():
        raise UserError(f'there is no file {path}')
    try:
        metadata = BACKENDS[format].read_metadata(Path(path))
        metadata['input_shape']
    except Exception as e:
        # Each runtime has errors of its own.
        raise UserError(
            f'{path} must be a file that mmvanilla exported as {format}, but '
            f'reading it fails: {type(e).__name__}') from e
    return metadata
