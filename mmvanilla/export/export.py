# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a checkpoint to an exported file, verified in its own runtime."""
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoints.read import load_weights
from ..reparam.compare import SAME, Comparison, Result, compare, relative_error
from ..reparam.merge import compare_layers, switch_loaded
from ..reparam.samples import Samples, find_samples
from ..utils.configs import build_model, check_data, scope_of
from ..utils.errors import UserError
from ..utils.files import check_output, write_beside
from ..utils.terminal import markdown_table
from .exported import Exported, Results, pad, prepare
from .formats import FORMATS, check_format, write
from .metadata import describe
from .network import make_network
from .to_openvino import has_bf16

WHAT = 'comparing the exported file with PyTorch'


@dataclass
class ExportReport:
    """What was exported, and how its outputs compare with PyTorch's.

    Attributes:
        path (Path): The file.
        title (str): Its format, its precision, and what it ran in.
        metadata (dict): What the file's metadata hold.
        verification (Comparison): The comparison.
    """

    path: Path
    title: str
    metadata: dict[str, object]
    verification: Comparison

    def table(self) -> str:
        """The report in Markdown."""
        return markdown_table(['', 'value'], [
            ('format', self.title),
            *((f'size of {path.name}',
               f'{path.stat().st_size / 1e6:,.2f} MB')
              for path in _paths(self.path)),
            *self.verification.rows()])


def export(cfg: Config, checkpoint: str | Path, out: str | Path,
           format: str = 'onnx', precision: str = 'fp32', part: str = 'model',
           dynamic_batch: bool = False, dynamic_size: bool = False,
           preprocess: bool = False, opset: int | None = None,
           samples: int = 512, calibration_samples: int = 256,
           tol: float = 1e-4, max_drop: float = 1.0,
           force: bool = False) -> ExportReport:
    """Export a checkpoint in deploy form, and verify the file.

    It is compared, in its own runtime, with the network before merging.

    Args:
        cfg (Config): The config of the checkpoint.
        checkpoint (str): The checkpoint, in any form.
        out (str): Where to write; OpenVINO's weights are beside it, in .bin.
        format (str): 'onnx', 'openvino', 'pt2' (``torch.export``) or 'aoti'
            (compiled ahead of time by Inductor). Defaults to 'onnx'.
        precision (str): 'fp32', 'fp16', 'bf16' or 'int8', which is calibrated
            on training images in the test pipeline. Defaults to 'fp32'.
        part (str): 'model', which is a classifier, a detector or a
            segmentor, or 'backbone'. Defaults to 'model'.
        dynamic_batch (bool): Whether the file takes any number of images.
            Defaults to False.
        dynamic_size (bool): Whether the file takes images of any size.
            Defaults to False: of the largest height and width of the samples,
            to which a detector's and a segmentor's are padded.
        preprocess (bool): Whether the file takes uint8 images, (N, H, W, 3)
            in RGB or (N, H, W, 1), and normalizes them. Defaults to False.
        opset (int, optional): Opset of ONNX, from 17. Defaults to None: 18.
        samples (int): Maximum number of validation samples to compare on.
            Defaults to 512.
        calibration_samples (int): Maximum number of training samples to
            calibrate int8 on. Defaults to 256.
        tol (float): Maximum relative error of an output in fp32. Defaults to
            1e-4.
        max_drop (float): Maximum drop of the top-1 accuracy, the AP or the
            mIoU in lower precisions, in points. Defaults to 1.0.
        force (bool): Whether to replace existing files. Defaults to False.

    Returns:
        ExportReport: What was exported and how it compares.

    Raises:
        UserError: If a package is missing, the options or the checkpoint do
            not fit, ``out`` cannot be written, or the outputs differ. No file
            is written then.
    """
    out, checkpoint = Path(out), str(checkpoint)
    check_format(format, precision, opset)
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, but got {part}')
    if out.suffix != FORMATS[format].suffix:
        raise UserError(f'the name of a file of {format} must end in '
                        f'{FORMATS[format].suffix}, but got {out}')
    paths = _paths(out)
    for path in paths:
        check_output(path, [checkpoint.split('://')[-1]], force)

    model = build_model(cfg)
    meta = load_weights(model, checkpoint)
    unmerged = copy.deepcopy(model)
    switch_loaded(model, checkpoint)

    found = find_samples(cfg, samples)
    if found.random:
        del found.batches[16:]
    with scope_of(cfg), torch.no_grad():
        example = prepare(model, found.batches[0])[0]
        network = make_network(model, part, example)
        if network.predicts and not dynamic_size:  # others are padded to it
            sizes = [prepare(model, x)[0].shape[2:] for x in found.batches]
            example = pad(example, dict(
                size=[*map(max, zip(*sizes))], value=0), [])
            network = make_network(model, part, example)
        metadata = describe(
            cfg, model, meta, example, network.task, dynamic_size)
        inputs = partial(_inputs, model, metadata, dynamic_size)
        if network.predicts:
            _check_predicting(network, format, precision,
                              dynamic_batch or dynamic_size, found)
            metadata.update(network.settings,
                            outputs=list(network.output_names))
        notes = []
        if metadata['preprocess'] is None:
            notes.append(('preprocess', 'not in the metadata: the test '
                          'pipeline has transforms that are not known'))
        fitting = [batch for batch in found.batches if inputs([batch])]
        if len(fitting) < len(found.batches):
            notes.append(("not of the size of the network's input, left out",
                          f'{len(found.batches) - len(fitting)}'))
            found = replace(found, batches=fitting, whole=False)
        calibration = None
        if precision == 'int8':
            calibration, images = _calibration(
                cfg, calibration_samples, inputs)
            notes.append(('calibrated on', f'{images} in the test pipeline'))
            if format == 'openvino' and getattr(network, 'float_layers', 0):
                notes.append(('kept in float32', "the head's layers"))
        if (format, precision) == ('openvino', 'bf16') and not has_bf16():
            notes.append(('computed in float32', 'this CPU has no bf16: what '
                          'it would change is not compared'))
        # Detectors are compared with the toolbox's own predictions.
        exact = network.task != 'detection'
        before = make_network(unmerged, part, example) if exact else network
        if exact and _is_constant(before, inputs(found.batches[:8])):
            compare_layers(unmerged, model, WHAT)
            found = replace(found, batches=found.batches[:1], whole=False)
            notes.append(('the outputs are the same for all samples',
                          'which shows little; each layer was compared too'))
        with write_beside(*paths) as temporary:
            write(network, example, temporary[-1], format, precision,
                  dynamic_batch, dynamic_size, metadata, calibration,
                  preprocess, opset)
            run = Exported(temporary[-1], format)
            results = Results(cfg, unmerged, before, run, found)
            comparison = compare(partial(results, 0), partial(results, 1),
                                 found, tol, precision, max_drop, WHAT,
                                 results.metrics)
            if not network.predicts or precision == 'fp32':
                for x in _other_shapes(example, dynamic_batch, dynamic_size):
                    compare(*(partial(_outputs, before.output_names, forward)
                              for forward in (before, run)),
                            [dict(inputs=x)], tol, precision, what=WHAT)
            for name, (a, b) in comparison.metrics.items():
                unit = 0.01 if name.endswith('mAP') else 1
                if name.endswith(('mAP', 'mIoU')) and (
                        precision == 'fp32' and a - b > max_drop * unit):
                    notes.append((f'{name} falls', 'as images are padded'))
    comparison.notes += notes
    return ExportReport(out, run.title, run.metadata, comparison)


def _paths(out: Path) -> list[Path]:
    """The files to write; the last one is what the others belong to."""
    return [out.with_suffix('.bin'), out] if out.suffix == '.xml' else [out]


def _check_predicting(network: nn.Module, format: str, precision: str,
                      is_dynamic: bool, samples: Samples) -> None:
    if format not in ('onnx', 'openvino'):
        raise UserError(f'a whole {type(network.model).__name__} is exported '
                        f'to onnx or openvino, not to {format}')
    if network.task == 'detection' and is_dynamic:
        raise UserError('a whole detector takes one image of one size: leave '
                        'out --dynamic-batch and --dynamic-size')
    if precision != 'fp32' and not samples.whole:
        raise UserError(
            f'{precision} is judged by AP or mIoU of the whole validation '
            f'set, but got {samples}: use a larger --samples')


def _inputs(model: nn.Module, metadata: dict, dynamic_size: bool,
            batches: list[dict]) -> list[Tensor]:
    """The images of batches of one that have the size of the input."""
    found = [prepare(model, x, metadata['padding'])[0] for x in batches]
    return [x for x in found if dynamic_size
            or list(x.shape[2:]) == metadata['input_size']]


def _calibration(cfg: Config, number: int,
                 inputs: Callable) -> tuple[list[Tensor], str]:
    """Training images in the test pipeline that fit the input."""
    check_data(cfg, 'train_dataloader')
    found = find_samples(cfg, number, 'train', test_pipeline=True)
    if found.random:
        raise UserError('int8 is calibrated on training images, and those of '
                        f'{cfg.filename} are not there')
    images = inputs(found.batches)
    if not images:
        raise UserError(
            'int8 is calibrated on training images, and in the test pipeline '
            f'none of {len(found.batches)} has the size of the input: use '
            '--dynamic-size, or more --calibration-samples')
    return images, f'{len(images)} of {len(found.batches)} training images'


def _is_constant(network: nn.Module, inputs: list[Tensor]) -> bool:
    first, *others = (network(x)[0].double() for x in inputs)
    return bool(others) and all(
        first.shape == x.shape and relative_error(first, x) <= SAME
        for x in others)


def _other_shapes(x: Tensor, batch: bool, size: bool) -> list[Tensor]:
    """Inputs of other shapes that a file with dynamic sizes accepts."""
    h, w = x.shape[2:]
    return [F.interpolate(x, other)
            for other in ((h + 32, w), (h, w + 33)) if size] + (
                [torch.cat([x, x.flip(3), x.flip(2)])] if batch else [])


def _outputs(names: tuple[str], forward, batch: dict) -> Result:
    return Result({name: x for name, x in zip(names, forward(batch['inputs']))
                   if x.is_floating_point()})
