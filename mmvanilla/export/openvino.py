# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""OpenVINO's pair of files, .xml and .bin, opened in OpenVINO on a CPU.

OpenVINO would run an .xml with the .bin of another network, so the .xml holds
the SHA-256 of its own.
"""
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from ..utils.files import sha256
from .program import DynamicShapes, onnx_model

SUFFIX = '.xml'
PACKAGES = ('onnx', 'onnxscript', 'openvino')
PRECISIONS = ('fp32', 'bf16', 'int8')
NAMESPACE = 'mmvanilla'  # of the metadata, in the model's rt_info
HASH = 'bin_sha256'


def write(network: nn.Module, example: Tensor, path: Path,
          shapes: DynamicShapes, metadata: dict, precision: str,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.backends.write`.

    bf16 is written as float32: OpenVINO takes the precision when it compiles
    the file.
    """
    import onnx
    import openvino as ov
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'fp32.onnx')
        onnx.save(onnx_model(network, example, shapes), source)
        model = ov.convert_model(source)
    if precision == 'int8':
        model = _quantize(model, calibration)
    # Written twice: the hash of the weights, which the .xml holds, is known
    # only after they are written.
    hash_ = ''
    for _ in range(2):
        for key, value in {**metadata, HASH: hash_}.items():
            model.set_rt_info(json.dumps(value), [NAMESPACE, key])
        # By default the weights would be rounded to half precision.
        ov.save_model(model, path, compress_to_fp16=False)
        hash_ = sha256(path.with_suffix('.bin'))


def _quantize(model, calibration: list[Tensor]):
    import nncf
    return nncf.quantize(
        model,
        nncf.Dataset([x.numpy() for x in calibration]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration))


def open_file(path: Path, precision: str,
              threads: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Open a file; see :func:`mmvanilla.export.backends.open_exported`.

    Raises:
        UserError: If the .bin is missing, or not the one that the .xml was
            written with.
    """
    import openvino as ov
    _check_pair(path)
    # On a CPU without bf16, OpenVINO computes it as f32.
    options = dict(
        INFERENCE_PRECISION_HINT='bf16' if precision == 'bf16' else 'f32',
        PERFORMANCE_HINT='LATENCY')
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    request = ov.Core().compile_model(
        str(path), 'CPU', options).create_infer_request()
    return lambda x: [
        torch.from_numpy(np.array(out))
        for out in request.infer([x.numpy()]).values()
    ]


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that :func:`write` was given, and the .bin's hash."""
    import openvino as ov
    info = ov.Core().read_model(str(path)).get_rt_info([NAMESPACE])
    return {
        key: json.loads(getattr(value, 'value', value))
        for key, value in info.value.items()
    }


def _check_pair(path: Path) -> None:
    weights = path.with_suffix('.bin')
    if not weights.is_file():
        raise UserError(f'{path} needs its weights beside it, in {weights}')
    if read_metadata(path)[HASH] != sha256(weights):
        raise UserError(f'{weights} holds other weights than those that '
                        f'{path} was written with: export both again')
