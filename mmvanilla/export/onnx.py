# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""ONNX files, opened in ONNX Runtime on a CPU."""
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .program import DynamicShapes, onnx_model

SUFFIX = '.onnx'
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
# ONNX Runtime's CPU provider has no bf16 convolution.
PRECISIONS = ('fp32', 'int8')
LAYERS = ['Conv', 'ConvTranspose', 'Gemm', 'MatMul']


def write(network: nn.Module, example: Tensor, path: Path,
          shapes: DynamicShapes, metadata: dict, precision: str,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.backends.write`."""
    import onnx
    model = onnx_model(network, example, shapes)
    if precision == 'int8':
        # Of a detector only layers are quantized, not operations on boxes.
        model = _quantize(model, calibration,
                          LAYERS if network.predicts else None)
    onnx.helper.set_model_props(
        model, {k: json.dumps(v) for k, v in metadata.items()})
    # The weights are in the same file, which may have up to 2 GB.
    onnx.save(model, path)


def _quantize(model, calibration: list[Tensor], operators):
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):

        def __init__(self):
            self.inputs = iter(calibration)

        def get_next(self):
            x = next(self.inputs, None)
            return None if x is None else dict(input=x.numpy())

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, 'fp32.onnx'), Path(folder, 'int8.onnx')
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8)
        return onnx.load(target)


def open_file(path: Path, precision: str,
              threads: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Open a file; see :func:`mmvanilla.export.backends.open_exported`."""
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    return lambda x: [
        torch.from_numpy(np.array(out))
        for out in session.run(None, dict(input=x.numpy()))
    ]


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that :func:`write` was given."""
    import onnx
    model = onnx.load(path)
    return {p.key: json.loads(p.value) for p in model.metadata_props}
