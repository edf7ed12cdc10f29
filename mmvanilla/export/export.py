# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a checkpoint to an exported file, verified in its own runtime.

In every format the input is normalized images, float32 of (N, C, H, W). The
outputs are logits, (N, num_classes), of a classifier; one feature map for each
of a backbone's ``out_indices``; or the predictions of a detector or segmentor.
The file's metadata hold what a server needs to use it (labels, mean, std,
input size and order of channels), see
:func:`mmvanilla.export.network.describe`.
"""
import copy
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoints import load_weights, local_path
from ..reparam.switch import switch_loaded
from ..utils.building import build_model, scope_of
from ..utils.data import missing_data, random_batches, real_batches
from ..utils.errors import UserError
from ..utils.files import check_output, replace_together
from ..utils.tables import markdown_table
from .backends import BACKENDS, check_backend, open_exported, write
from .network import describe, make_network
from .predictions import PredictionComparison
from .verify import Verification, verify
from .verify_predictions import check_predicting, compare_predictions


@dataclass
class ExportReport:
    """What was exported, and how its outputs compare with PyTorch's.

    Attributes:
        path (Path): The file.
        format (str): 'onnx', 'openvino', 'pt2' or 'aoti'.
        precision (str): 'fp32', 'bf16' or 'int8'.
        metadata (dict): What the file's metadata hold.
        verification (Verification | PredictionComparison): The comparison.
    """

    path: Path
    format: str
    precision: str
    metadata: dict[str, object]
    verification: Verification | PredictionComparison

    def table(self) -> str:
        """The report in Markdown."""
        rows = [('format', f'{self.format}, {self.precision}'),
                ('file size', f'{self.path.stat().st_size / 1e6:,.2f} MB')]
        if self.format == 'openvino':
            size = self.path.with_suffix('.bin').stat().st_size
            rows.append(('size of weights', f'{size / 1e6:,.2f} MB'))
        return markdown_table(['', 'value'],
                              rows + self.verification.rows())


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
           tol: float = 1e-4,
           max_drop: float = 1.0,
           force: bool = False) -> ExportReport:
    """Export a checkpoint in deploy form, and verify the file.

    The file is written under a temporary name, opened in its own runtime and
    compared with the network as it was before merging.

    Args:
        cfg (Config): The config of the checkpoint.
        checkpoint (str): The checkpoint, in any form; merged first if it is
            not in deploy form.
        out (str): Where to write. OpenVINO writes the weights beside it, with
            the suffix ``.bin``.
        format (str): 'onnx', 'openvino', 'pt2' (``torch.export``) or 'aoti'
            (compiled ahead of time by Inductor). Defaults to 'onnx'.
        precision (str): 'fp32', 'bf16' or 'int8', which is quantized after
            training, calibrated on the training set. Defaults to 'fp32'.
        part (str): 'model', which is a classifier, a detector or a
            segmentor, or 'backbone'. Defaults to 'model'.
        dynamic_batch (bool): Whether the file takes any number of images.
            Defaults to False: one image.
        dynamic_size (bool): Whether the file takes images of any size.
            Defaults to False: the size of the validation set.
        samples (int): Maximum number of samples of the validation set to
            compare on. Defaults to 512.
        calibration_samples (int): Maximum number of samples of the training
            set to calibrate int8 on. Defaults to 256.
        tol (float): The maximum allowed relative error of an output tensor in
            fp32. Defaults to 1e-4.
        max_drop (float): The maximum allowed drop of the top-1 accuracy, the
            AP or the mIoU in bf16 and int8, in percentage points.
            Defaults to 1.0.
        force (bool): Whether to replace a file that mmvanilla did not write.
            Defaults to False.

    Returns:
        ExportReport: What was exported and how it compares.

    Raises:
        UserError: If a package is missing, the combination is not supported,
            the checkpoint does not fit or cannot be merged, ``out`` cannot be
            written, or the outputs differ. Then no file is written.
    """
    out = Path(out)
    check_backend(format, precision)
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, but got {part}')
    if min(samples, calibration_samples) < 1:
        raise UserError('the number of samples must be positive')
    if out.suffix != BACKENDS[format].SUFFIX:
        raise UserError(f'the name of a file of {format} must end in '
                        f'{BACKENDS[format].SUFFIX}, but got {out}')
    paths = [out]
    if format == 'openvino':
        paths.append(out.with_suffix('.bin'))
    for path in paths:
        check_output(path, [local_path(checkpoint)], force)

    model = build_model(cfg)
    meta = load_weights(model, checkpoint)
    unmerged = copy.deepcopy(model)
    switch_loaded(model, checkpoint)

    batches = real_batches(cfg, samples)
    is_random = batches is None
    if is_random:
        batches = random_batches(cfg, min(samples, 16))
    # Of a detector's or segmentor's images, which are large, only the first
    # is needed here.
    predicts = part == 'model' and not hasattr(model, 'head')
    inputs, labels = _preprocess(cfg, model, batches[:1] if predicts else
                                 batches, samples)
    calibration = None
    if precision == 'int8':
        calibration = _calibration_inputs(cfg, model, calibration_samples)

    example = inputs[0]
    metadata = describe(cfg, model, meta, example, part, precision)
    if not dynamic_size:
        kept = [i for i, x in enumerate(inputs) if x.shape == example.shape]
        inputs, labels = ([values[i] for i in kept]
                          for values in (inputs, labels))
    network = make_network(model, part, example)
    if network.predicts:
        check_predicting(cfg, network, format, precision, samples,
                         dynamic_batch, dynamic_size)
        metadata.update(network.settings())
    with replace_together(paths) as temporary:
        try:
            write(network, example, temporary[0], format, precision,
                  dynamic_batch, dynamic_size, metadata, calibration)
        except UserError as e:
            if network.predicts and dynamic_size:
                raise UserError(
                    f'this {type(unmerged).__name__} cannot be exported for '
                    f'any size, leave out --dynamic-size: {e}') from e
            raise
        run = open_exported(temporary[0], format, precision)
        if network.predicts:
            verification = compare_predictions(
                cfg, unmerged, network, run, batches, precision, tol,
                max_drop, is_random, dynamic_batch, dynamic_size)
        else:
            verification = verify(
                make_network(unmerged, part, example), run, inputs, labels,
                precision, tol, max_drop, is_random, dynamic_batch,
                dynamic_size)
    return ExportReport(out, format, precision, metadata, verification)


def _preprocess(cfg: Config, model: nn.Module, batches: list[dict],
                samples: int) -> tuple[list[Tensor], list[int | None]]:
    """Normalized images, each (1, C, H, W), and for each its label or None."""
    inputs, labels = [], []
    with scope_of(cfg):
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            inputs += data['inputs'].float().split(1)
            for sample in data.get('data_samples') or [None] * len(
                    data['inputs']):
                label = getattr(sample, 'gt_label', None)
                labels.append(None if label is None or label.numel() != 1 else
                              int(label))
    return inputs[:samples], labels[:samples]


def _calibration_inputs(cfg: Config, model: nn.Module,
                        samples: int) -> list[Tensor]:
    loader = cfg.get('train_dataloader')
    problem = (
        missing_data(loader.dataset) if loader else
        f'{cfg.filename} has no train_dataloader')
    if problem:
        raise UserError(f'int8 is calibrated on the training set: {problem}')
    batches = real_batches(cfg, samples, 'train')
    return _preprocess(cfg, model, batches, samples)[0]
