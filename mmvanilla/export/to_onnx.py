# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""ONNX files, opened in ONNX Runtime on a CPU."""
import copy
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from .torch_programs import export_program

OPSET = 18


def opsets() -> list[int]:
    """The opsets from 17 on that the installed exporter knows."""
    import onnxscript  # what the exporter is written in
    return [n for n in range(17, 99) if hasattr(onnxscript, f'opset{n}')]


def onnx_model(network: nn.Module, example: Tensor, metadata: dict):
    """A network as an ``onnx.ModelProto``, with its weights inside."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveMaxPool2d):
            if metadata['input_shape'][2] == -1:
                raise UserError(
                    f'"{name}" is an adaptive max pooling, for which ONNX has '
                    'no operator: leave out --dynamic-size, or use --format '
                    'pt2')
            network.set_submodule(name, FixedMaxPool2d(module.output_size))
    program = export_program(network, example, metadata)
    opset = metadata.get('opset', OPSET)
    model = torch.onnx.export(
        program, (example, ), dynamo=True, input_names=['input'],
        output_names=list(network.output_names),
        opset_version=max(opset, 18), verbose=False).model_proto
    return model if opset >= 18 else _to_opset_17(model)


def _to_opset_17(model):
    """Convert a model of opset 18, the oldest that the exporter writes."""
    import onnx
    import onnx.version_converter
    try:
        model = onnx.version_converter.convert_version(model, 17)
        for node in model.graph.node:
            # The converter leaves this one, which opset 17 does not have.
            for attribute in list(node.attribute):
                if attribute.name == 'noop_with_empty_axes':
                    node.attribute.remove(attribute)
    except Exception as e:
        raise UserError('this network cannot be written in opset 17, only in '
                        f'newer ones: {e}'.split('\n')[0]) from e
    return model


def write(network: nn.Module, example: Tensor, path: Path, metadata: dict,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.formats.write`."""
    import onnx
    model = onnx_model(network, example, metadata)
    if metadata['precision'] == 'int8':
        # Of a detector only layers are quantized, not operations on boxes.
        layers = ['Conv', 'ConvTranspose', 'Gemm', 'MatMul']
        model = _quantize(model, calibration, network.predicts and layers)
    onnx.helper.set_model_props(
        model, {k: json.dumps(v) for k, v in metadata.items()})
    # The weights are in the same file, which may have up to 2 GB.
    onnx.save(model, path)


def _quantize(model, calibration: list[Tensor], operators):
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        inputs = (dict(input=x.numpy()) for x in calibration)

        def get_next(self):
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, 'int8.onnx')
        quantization.quantize_static(
            model, target, Reader(), op_types_to_quantize=operators or None,
            quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8)
        return onnx.load(target)


def open_file(path: Path, threads: int | None):
    """Open a file; see :class:`mmvanilla.export.formats.Format`."""
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    properties = session.get_modelmeta().custom_metadata_map
    return lambda x: session.run(None, dict(input=x.numpy())), properties


class FixedMaxPool2d(nn.AdaptiveMaxPool2d):
    """``nn.AdaptiveMaxPool2d`` for ONNX, which has no operator for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        size = self.output_size
        size = size if isinstance(size, tuple) else (size, size)
        rows, columns = map(_windows, x.shape[2:], size)
        x = x[:, :, rows].amax(3)  # from (N, C, H', window, W)
        return x[:, :, :, columns].amax(4)


def _windows(size_in: int, size_out: int | None) -> Tensor:
    """Indices of each window, whose last one is repeated up to the largest."""
    size_out = size_out or size_in
    ends = [(i * size_in // size_out, -(-(i + 1) * size_in // size_out))
            for i in range(size_out)]
    longest = max(stop - start for start, stop in ends)
    return torch.tensor([[min(start + k, stop - 1) for k in range(longest)]
                         for start, stop in ends])
