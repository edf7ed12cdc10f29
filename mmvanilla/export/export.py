# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a checkpoint to a file that ships, checked in its own runtime.

Every format takes normalized images, float32 of (N, C, H, W), and gives
logits, (N, num_classes), or one feature map for each of the backbone's
``out_indices``. What a server needs to feed it (labels, mean, std, size and
order of channels) is in the file's metadata, under the names of
:func:`describe`.
"""
import copy
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn

from ..checkpoints import load_weights
from ..layers.forms import switch_to_deploy
from ..utils.building import (
    build_model,
    missing_data,
    random_batches,
    real_batches,
    scope_of,
)
from ..utils.errors import UserError
from ..utils.files import check_writable, replace_atomically
from ..utils.tables import markdown_table
from ..version import __version__

SUFFIXES = dict(
    onnx='.onnx', openvino='.xml', torchscript='.pt', pt2='.pt2')
PRECISIONS = ('fp32', 'bf16', 'int8')
NEEDS = dict(
    onnx=('onnx', 'onnxscript', 'onnxruntime'),
    openvino=('onnx', 'onnxscript', 'openvino'),
    torchscript=(),
    pt2=())
NAMESPACE = 'mmvanilla'
OPSET = 18

Runner = Callable[[Tensor], list[Tensor]]


@dataclass
class ExportReport:
    """What was exported, and how it compares with PyTorch.

    Attributes:
        max_abs (float): Largest difference of any output.
        largest (float): Largest output of PyTorch's.
        agreement (float, optional): Share of the samples with the same top-1;
            None where the outputs are feature maps.
        accuracy (dict): Top-1 accuracy in per cent, before and after, where
            the samples have labels.
    """

    path: Path
    format: str
    precision: str
    metadata: dict[str, object]
    samples: int = 0
    random: bool = False
    max_abs: float = 0.0
    largest: float = 0.0
    agreement: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """The report in Markdown."""
        kind = 'random images' if self.random else 'real samples'
        rows = [('format', f'{self.format}, {self.precision}'),
                ('file size', f'{self.path.stat().st_size / 1e6:,.2f} MB'),
                ('compared with PyTorch on', f'{self.samples} {kind}'),
                ('largest absolute difference', f'{self.max_abs:.3g}'),
                ('largest output', f'{self.largest:.3g}')]
        if self.format == 'openvino':
            size = self.path.with_suffix('.bin').stat().st_size
            rows.insert(2, ('size of weights', f'{size / 1e6:,.2f} MB'))
        if self.agreement is not None:
            rows.append(('top-1 agreement', f'{100 * self.agreement:.2f} %'))
        rows += [(f'accuracy {name}', f'{value:.2f} %')
                 for name, value in self.accuracy.items()]
        return markdown_table(['', 'value'], rows)


def export(cfg: Config,
           checkpoint: str | Path,
           out: str | Path,
           format: str = 'onnx',
           precision: str = 'fp32',
           part: str = 'model',
           dynamic_batch: bool = False,
           dynamic_size: bool = False,
           samples: int = 512,
           calibration_samples: int = 256,
           tol: float = 1e-4) -> ExportReport:
    """Export a checkpoint, in deploy form, and check what was exported.

    Args:
        cfg (Config): The config of the checkpoint, of either form.
        checkpoint (str): The checkpoint; merged first if it is not yet.
        out (str): Where to write. OpenVINO writes the weights beside it, with
            the suffix ``.bin``.
        format (str): 'onnx', 'openvino', 'torchscript' or 'pt2'
            (``torch.export``). Defaults to 'onnx'.
        precision (str): 'fp32', 'bf16' or 'int8', which is quantized after
            training, calibrated on the training set. Defaults to 'fp32'.
        part (str): 'model', which is a classifier, or 'backbone'.
            Defaults to 'model'.
        dynamic_batch (bool): Whether any number of images is taken. Else it
            is one. Defaults to False.
        dynamic_size (bool): Whether images of any size are taken. Else it is
            that of the validation set. Defaults to False.
        samples (int): How many samples of the validation set to compare on,
            at most. Defaults to 512.
        calibration_samples (int): How many of the training set to calibrate
            on, at most. Defaults to 256.
        tol (float): The largest difference that is let pass in fp32, relative
            to the largest output, or absolute where that is below 1.
            Defaults to 1e-4.

    Returns:
        ExportReport: What was exported and how it compares.

    Raises:
        UserError: If a runtime is missing, the combination is not supported,
            the checkpoint does not fit or cannot be merged, ``out`` cannot be
            written, or the exported model differs. No file is left behind.
    """
    out = Path(out)
    _check_request(out, checkpoint, format, precision, part)
    model = build_model(cfg)
    meta = load_weights(model, checkpoint)
    try:
        switch_to_deploy(model)
    except RuntimeError as e:
        raise UserError(f'{checkpoint}: {e}') from e
    network = make_network(model, part)

    batches = real_batches(cfg, samples)
    is_random = batches is None
    if is_random:
        batches = random_batches(cfg, min(samples, 16))
    with scope_of(cfg):
        inputs, labels = _preprocess(model, batches)
    calibration = None
    if precision == 'int8':
        calibration = _calibration_inputs(cfg, model, calibration_samples)

    report = ExportReport(out, format, precision,
                          describe(cfg, model, meta, inputs, part, precision),
                          len(inputs), is_random)
    paths = [out]
    if format == 'openvino':
        paths.insert(0, out.with_suffix('.bin'))
    with replace_all(paths) as temporary, torch.no_grad():
        write(network, inputs[0], temporary[-1], format, precision,
              dynamic_batch, dynamic_size, report.metadata, calibration)
        run = open_exported(temporary[-1], format, precision)
        _compare(report, network, run, inputs, labels)
        allowed = tol * max(1, report.largest)
        if precision == 'fp32' and not report.max_abs <= allowed:
            raise UserError(
                f'the exported model differs from PyTorch by '
                f'{report.max_abs:.3g}, more than {allowed:.3g}')
    return report


def _check_request(out: Path, checkpoint, format: str, precision: str,
                   part: str) -> None:
    if format not in SUFFIXES or precision not in PRECISIONS or part not in (
            'model', 'backbone'):
        raise UserError(
            f'format must be one of {", ".join(SUFFIXES)}, precision one of '
            f'{", ".join(PRECISIONS)} and part model or backbone, but got '
            f'{format}, {precision} and {part}')
    if out.suffix != SUFFIXES[format]:
        raise UserError(f'the name of a file of {format} must end in '
                        f'{SUFFIXES[format]}, got {out}')
    if precision == 'int8' and format not in ('onnx', 'openvino'):
        raise UserError(f'int8 is for onnx and openvino, not for {format}')
    if precision == 'bf16' and format == 'onnx':
        raise UserError("ONNX Runtime's CPU has no bf16 convolution; take "
                        '--format openvino, torchscript or pt2')
    require(*NEEDS[format])
    if precision == 'int8' and format == 'openvino':
        require('nncf')
    check_writable(out)
    if out.exists() and Path(checkpoint).exists() and out.samefile(checkpoint):
        raise UserError(f'the output {out} is the checkpoint itself, which '
                        'must stay as it is')


def require(*packages: str) -> None:
    """Refuse to go on without a runtime.

    Raises:
        UserError: Naming what is missing and the extra that installs it.
    """
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} is not installed: '
                        "pip install 'mmvanilla[export]'")


@contextmanager
def replace_all(paths: list[Path]) -> Iterator[list[Path]]:
    """:func:`replace_atomically` for files that go together.

    Those in front are renamed after those behind.
    """
    if not paths:
        yield []
        return
    with replace_atomically(paths[0]) as first, replace_all(
            paths[1:]) as others:
        yield [first, *others]


# ------------------------------------------------------- what is exported


class Network(nn.Module):
    """A classifier's logits, or a backbone's feature maps, of images."""

    def __init__(self,
                 backbone: nn.Module,
                 head: nn.Module | None = None,
                 neck: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.neck = neck

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> logits alone, or the feature maps."""
        feats = self.backbone(x.to(next(self.parameters()).dtype))
        if self.neck is not None:
            feats = self.neck(feats)
        outputs = feats if self.head is None else [self.head(feats)]
        return [out.float() for out in outputs]


def make_network(model: nn.Module, part: str = 'model') -> nn.Module:
    """The part of a model that is exported, in eval mode.

    Raises:
        UserError: If the model has no such part.
    """
    if not hasattr(model, 'backbone'):
        raise UserError(f'a {type(model).__name__} has no backbone to export')
    if part == 'backbone':
        return Network(model.backbone).eval()
    if not hasattr(model, 'head'):
        raise UserError(
            f'a {type(model).__name__} is exported by its backbone: take '
            '--part backbone')
    return Network(model.backbone, model.head,
                   getattr(model, 'neck', None)).eval()


def describe(cfg: Config, model: nn.Module, meta: dict, inputs: list[Tensor],
             part: str, precision: str) -> dict[str, object]:
    """All that a server needs to know beside the file itself.

    Returns:
        dict: ``labels`` (list[str], empty for a backbone), ``mean`` and
        ``std`` (lists of one number a channel, of pixels from 0 to 255),
        ``channel_order`` ('RGB', 'BGR' or 'gray'), ``input_size``
        ([height, width]), ``part``, ``precision`` and ``version``.
    """
    channels = inputs[0].shape[1]
    processor = model.data_preprocessor
    mean = getattr(processor, 'mean', None)
    std = getattr(processor, 'std', None)
    # OpenMMLab reads images as BGR, and its preprocessors may turn them.
    turned = bool(
        getattr(processor, 'to_rgb', False)
        or getattr(processor, '_channel_conversion', False))
    order = 'gray' if channels == 1 else 'RGB' if turned else 'BGR'
    return dict(
        labels=_labels(cfg, meta) if part == 'model' else [],
        mean=[0.0] * channels if mean is None else mean.flatten().tolist(),
        std=[1.0] * channels if std is None else std.flatten().tolist(),
        channel_order=order,
        input_size=list(inputs[0].shape[2:]),
        part=part,
        precision=precision,
        version=__version__)


def _labels(cfg: Config, meta: dict) -> list[str]:
    dataset_meta = meta.get('dataset_meta') or {}
    labels = dataset_meta.get('classes') or dataset_meta.get('CLASSES')
    for split in ('val', 'test', 'train'):
        if labels:
            break
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset', {})
        if not isinstance(dataset.get('type'), str):
            continue
        with scope_of(cfg):
            kind = DATASETS.get(dataset['type'])
        labels = dict(getattr(kind, 'METAINFO', {}),
                      **(dataset.get('metainfo') or {})).get('classes')
    return [str(label) for label in labels or ()]


def _preprocess(model: nn.Module, batches: list[dict]):
    """Normalized images, each (1, C, H, W), and the label of each or None."""
    inputs, labels = [], []
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        inputs += data['inputs'].float().split(1)
        for sample in data.get('data_samples') or [None] * len(
                data['inputs']):
            label = getattr(sample, 'gt_label', None)
            labels.append(None if label is None or label.numel() != 1 else
                          int(label))
    return inputs, labels


def _calibration_inputs(cfg: Config, model: nn.Module,
                        samples: int) -> list[Tensor]:
    loader = cfg.get('train_dataloader')
    problem = (
        missing_data(loader.dataset) if loader else
        f'{cfg.filename} has no train_dataloader')
    if problem:
        raise UserError(f'int8 is calibrated on the training set: {problem}')
    with scope_of(cfg):
        batches = real_batches(cfg, samples, 'train')
        return _preprocess(model, batches)[0][:samples]


def _compare(report: ExportReport, network: nn.Module, run: Runner,
             inputs: list[Tensor], labels: list[int | None]) -> None:
    same = before = after = labelled = 0
    for x, label in zip(inputs, labels):
        references, outputs = network(x), run(x)
        for a, b in zip(references, outputs, strict=True):
            if a.shape != b.shape or not b.isfinite().all():
                raise UserError('the exported model gives outputs of '
                                f'{tuple(b.shape)}, or not finite, for '
                                f'{tuple(a.shape)}')
            report.max_abs = max(report.max_abs, (a - b).abs().max().item())
            report.largest = max(report.largest, a.abs().max().item())
        if report.metadata['part'] == 'model':
            a, b = references[0].argmax(1).item(), outputs[0].argmax(1).item()
            same += a == b
            if label is not None:
                labelled += 1
                before += a == label
                after += b == label
    if report.metadata['part'] == 'model':
        report.agreement = same / len(inputs)
    if labelled:
        report.accuracy = dict(
            before=100 * before / labelled, after=100 * after / labelled)


# ---------------------------------------------------------------- writing


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

    Args:
        network (nn.Module): Takes (N, C, H, W), returns a list of tensors.
        example (Tensor): An input, (1, C, H, W).
        path (Path): Where to write.
        format (str): As in :func:`export`, like ``precision``,
            ``dynamic_batch`` and ``dynamic_size``.
        metadata (dict, optional): As :func:`describe` returns it.
        calibration (list[Tensor], optional): Inputs to calibrate int8 on.
    """
    if precision == 'bf16' and format != 'openvino':
        # OpenVINO keeps float32 and is told the precision when it compiles.
        network = copy.deepcopy(network).bfloat16()
    metadata = metadata or {}
    shapes = _dynamic_shapes(dynamic_batch, dynamic_size)
    if dynamic_batch:
        # A batch of one would be taken for a constant.
        example = torch.cat([example, example])
    writer = dict(
        onnx=_write_onnx,
        openvino=_write_openvino,
        torchscript=_write_torchscript,
        pt2=_write_pt2)[format]
    with warnings.catch_warnings():
        # The exporters warn of each other's deprecations, and of operators
        # that are not in the network.
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            writer(network, example, path, shapes, metadata, calibration)
        finally:
            logging.disable(logging.NOTSET)


def _dynamic_shapes(batch: bool, size: bool) -> tuple | None:
    dims = {}
    if batch:
        dims[0] = torch.export.Dim('batch', min=1)
    if size:
        dims[2] = torch.export.Dim('height', min=32)
        dims[3] = torch.export.Dim('width', min=32)
    return (dims, ) if dims else None


def _export_program(network: nn.Module, example: Tensor,
                    shapes) -> torch.export.ExportedProgram:
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
    # Of a pooling it asserts that nothing is left over at the border, which
    # the pooling itself drops: only even sizes would pass.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _onnx_model(network: nn.Module, example: Tensor, shapes):
    program = torch.onnx.export(
        _export_program(network, example, shapes),
        (example, ),
        dynamo=True,
        input_names=['input'],
        output_names=_output_names(network, example),
        opset_version=OPSET,
        verbose=False)
    return program.model_proto


def _output_names(network: nn.Module, example: Tensor) -> list[str]:
    if network.head is not None:
        return ['logits']
    return [f'feature_{i}' for i in range(len(network(example)))]


def _write_onnx(network, example, path, shapes, metadata, calibration) -> None:
    import onnx
    model = _onnx_model(network, example, shapes)
    if calibration is not None:
        model = _quantize_onnx(model, calibration)
    onnx.helper.set_model_props(
        model, {k: json.dumps(v) for k, v in metadata.items()})
    # Weights stay in the one file, which may have up to 2 GB.
    onnx.save(model, path)


def _quantize_onnx(model, calibration: list[Tensor]):
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
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8)
        return onnx.load(target)


def _write_openvino(network, example, path, shapes, metadata,
                    calibration) -> None:
    import onnx
    import openvino as ov
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'fp32.onnx')
        onnx.save(_onnx_model(network, example, shapes), source)
        model = ov.convert_model(source)
    if calibration is not None:
        model = _quantize_openvino(model, calibration)
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [NAMESPACE, key])
    # Half-precision weights, its default, would cost the fourth digit.
    ov.save_model(model, path, compress_to_fp16=False)


def _quantize_openvino(model, calibration: list[Tensor]):
    import nncf
    return nncf.quantize(
        model,
        nncf.Dataset([x.numpy() for x in calibration]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration))


def _write_torchscript(network, example, path, shapes, metadata,
                       calibration) -> None:
    traced = torch.jit.trace(network, example, check_trace=False)
    torch.jit.save(
        traced, str(path), {'metadata.json': json.dumps(metadata).encode()})


def _write_pt2(network, example, path, shapes, metadata, calibration) -> None:
    torch.export.save(
        _export_program(network, example, shapes),
        str(path),
        extra_files={'metadata.json': json.dumps(metadata)})


# ---------------------------------------------------------------- reading


def open_exported(path: Path,
                  format: str,
                  precision: str = 'fp32',
                  threads: int | None = None) -> Runner:
    """Open an exported file in its own runtime.

    Args:
        path (Path): What :func:`write` wrote.
        format (str): Its format.
        precision (str): Its precision. Defaults to 'fp32'.
        threads (int, optional): Threads to compute with. Defaults to None,
            the runtime's own choice; PyTorch's formats follow
            ``torch.set_num_threads``.

    Returns:
        Callable: From (N, C, H, W) to a list of tensors.
    """
    opener = dict(
        onnx=_open_onnx,
        openvino=_open_openvino,
        torchscript=_open_torchscript,
        pt2=_open_pt2)[format]
    return opener(Path(path), precision, threads)


def read_metadata(path: str | Path, format: str) -> dict[str, object]:
    """The metadata of an exported file, as :func:`describe` made it."""
    path = str(path)
    if format == 'onnx':
        import onnx
        model = onnx.load(path)
        return {p.key: json.loads(p.value) for p in model.metadata_props}
    if format == 'openvino':
        import openvino as ov
        info = ov.Core().read_model(path).get_rt_info([NAMESPACE])
        return {
            key: json.loads(getattr(value, 'value', value))
            for key, value in info.value.items()
        }
    files = {'metadata.json': ''}
    if format == 'torchscript':
        torch.jit.load(path, 'cpu', files)
    else:
        torch.export.load(path, extra_files=files)
    return json.loads(files['metadata.json'])


def _as_tensors(arrays) -> list[Tensor]:
    return [torch.from_numpy(np.array(a, dtype=np.float32)) for a in arrays]


def _open_onnx(path: Path, precision: str, threads: int | None) -> Runner:
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    return lambda x: _as_tensors(session.run(None, dict(input=x.numpy())))


def _open_openvino(path: Path, precision: str,
                   threads: int | None) -> Runner:
    import openvino as ov
    # On a CPU without it, OpenVINO computes bf16 as f32.
    options = dict(
        INFERENCE_PRECISION_HINT='bf16' if precision == 'bf16' else 'f32',
        PERFORMANCE_HINT='LATENCY')
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    request = ov.Core().compile_model(
        str(path), 'CPU', options).create_infer_request()
    return lambda x: _as_tensors(request.infer([x.numpy()]).values())


def _open_torchscript(path: Path, precision: str,
                      threads: int | None) -> Runner:
    return torch.jit.load(str(path), 'cpu')


def _open_pt2(path: Path, precision: str, threads: int | None) -> Runner:
    return torch.export.load(str(path)).module()
