# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""OpenVINO's pair of files, .xml and .bin, opened in OpenVINO on a CPU."""
import hashlib
import io
import json
from pathlib import Path

from torch import Tensor, nn

from ..utils.errors import UserError
from .to_onnx import onnx_model

NAMESPACE = 'mmvanilla'  # of the metadata, in the model's rt_info
LAYERS = 'Convolution', 'GroupConvolution', 'MatMul'


def write(network: nn.Module, example: Tensor, path: Path, metadata: dict,
          calibration: list[Tensor] | None) -> None:
    """Write a network; see :func:`mmvanilla.export.formats.write`."""
    import openvino as ov
    # OpenVINO rounds by itself: weights to fp16 when the file is written, all
    # to bf16 when it is compiled.
    source = onnx_model(network, example, metadata | dict(precision='fp32'))
    model = ov.convert_model(io.BytesIO(source.SerializeToString()))
    if metadata['precision'] == 'int8':
        import nncf
        model = nncf.quantize(
            model, nncf.Dataset([x.numpy() for x in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration), ignored_scope=nncf.IgnoredScope(
                _last_layers(model, getattr(network, 'float_layers', 0))))
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [NAMESPACE, key])
    half = metadata['precision'] == 'fp16'
    ov.save_model(model, path, compress_to_fp16=half)
    model.set_rt_info(_digest(path), [NAMESPACE, 'weights'])
    ov.save_model(model, path, compress_to_fp16=half)


def _digest(path: Path) -> str:
    """In JSON, the SHA-256 of the weights beside a file."""
    weights = path.with_suffix('.bin').read_bytes()
    return json.dumps(hashlib.sha256(weights).hexdigest())


def _last_layers(model, number: int) -> list[str]:
    """Layers with fewer than ``number`` others between them and an output."""
    count, found = {}, []
    for op in reversed(model.get_ordered_ops()):
        name, is_layer = op.get_friendly_name(), op.get_type_name() in LAYERS
        count[name] = is_layer + min((
            count[x.get_node().get_friendly_name()]
            for out in op.outputs() for x in out.get_target_inputs()),
            default=0)
        if is_layer and count[name] <= number:
            found.append(name)
    return found


def has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this CPU."""
    import openvino as ov
    return 'BF16' in ov.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def open_file(path: Path, threads: int | None):
    """Open a file; see :class:`mmvanilla.export.formats.Format`."""
    import openvino as ov
    core, weights = ov.Core(), path.with_suffix('.bin')
    if not weights.is_file():
        raise UserError(f'{path} needs its weights beside it, in {weights}')
    model = core.read_model(str(path))
    properties = {
        key: getattr(value, 'value', value)
        for key, value in model.get_rt_info([NAMESPACE]).value.items()}
    if properties.get('weights') != _digest(path):
        raise UserError(f'{weights} does not hold the weights of {path}: they '
                        'are two files of one export')
    # On a CPU without bf16, OpenVINO computes it as f32.
    options = dict(PERFORMANCE_HINT='LATENCY', INFERENCE_PRECISION_HINT=(
        'bf16' if properties['precision'] == '"bf16"' else 'f32'))
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    request = core.compile_model(model, 'CPU', options).create_infer_request()
    return lambda x: request.infer([x.numpy()]).values(), properties
