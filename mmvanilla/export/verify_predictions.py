# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare an exported detector or segmentor with the toolbox's."""
import copy
import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..reparam.verify import OutputComparison
from ..utils.building import scope_of
from ..utils.data import missing_data
from ..utils.errors import UserError
from .predictions import PredictionComparison
from .segmentors import Segmentor

Run = Callable[[Tensor], list[Tensor]]


def check_predicting(cfg: Config, network: nn.Module, format: str,
                     precision: str, samples: int, dynamic_batch: bool,
                     dynamic_size: bool) -> None:
    """Refuse options with which a detector or segmentor cannot be exported.

    Args:
        cfg (Config): The config of the model.
        network (nn.Module): What is to be exported.
        format (str): 'onnx' and 'openvino' are possible.
        precision (str): 'fp32', 'bf16' or 'int8'.
        samples (int): Maximum number of samples to compare on.
        dynamic_batch (bool): Not possible for a detector.
        dynamic_size (bool): Not possible for a detector.

    Raises:
        UserError: If the network cannot be exported so, or the samples in
            bf16 or int8 are not the whole validation set.
    """
    if format not in ('onnx', 'openvino'):
        raise UserError(f'a whole {type(network.model).__name__} is exported '
                        f'to onnx or openvino, not to {format}')
    if hasattr(network, 'input_size') and (dynamic_batch or dynamic_size):
        raise UserError(
            'a whole detector takes one image of one size, since the number '
            'of detections differs and the anchors are computed once: leave '
            'out --dynamic-batch and --dynamic-size')
    if precision == 'fp32':
        return
    dataset = _val_dataset(cfg)
    if dataset is not None and samples < len(dataset):
        raise UserError(f'{precision} is judged by the metrics of the whole '
                        f'validation set: take --samples {len(dataset)}')


@torch.no_grad()
def compare_predictions(cfg: Config,
                        model: nn.Module,
                        network: nn.Module,
                        run: Run,
                        batches: Sequence[dict],
                        precision: str = 'fp32',
                        tol: float = 1e-4,
                        max_drop: float = 1.0,
                        random: bool = False,
                        dynamic_batch: bool = False,
                        dynamic_size: bool = False) -> PredictionComparison:
    """Compare the predictions of an exported file with the toolbox's.

    Args:
        cfg (Config): The config of the model.
        model (nn.Module): The toolbox's model, in eval mode, in any form.
        network (nn.Module): The network that was exported, a
            :class:`DenseDetector`, a :class:`TwoStageDetector` or a
            :class:`Segmentor`.
        run (Callable): The exported file, opened.
        batches (Sequence[dict]): Validation batches, as the data loader gives
            them.
        precision (str): The file's precision. Defaults to 'fp32'.
        tol (float): The maximum allowed relative error of a segmentor's
            logits in fp32. Defaults to 1e-4.
        max_drop (float): The maximum allowed drop of AP or mIoU in bf16 and
            int8, in percentage points. Defaults to 1.0.
        random (bool): Whether the batches are random images.
            Defaults to False.
        dynamic_batch (bool): Whether to compare a segmentor on a batch of
            three as well. Defaults to False.
        dynamic_size (bool): Whether to compare a segmentor at two other sizes
            as well. Defaults to False.

    Returns:
        PredictionComparison: The differences, and the metrics of both.

    Raises:
        UserError: If the predictions differ by more, or there are none.
    """
    comparison = PredictionComparison(OutputComparison(tol), random)
    dataset = None if random else _val_dataset(cfg)
    evaluators = [] if dataset is None else _evaluators(cfg, dataset)
    add = _add_labels if isinstance(network, Segmentor) else _add_boxes
    with scope_of(cfg):
        for batch in batches:
            data = model.data_preprocessor(copy.deepcopy(batch), False)
            after = []
            for x, sample in zip(data['inputs'], data['data_samples']):
                x = fit(x[None].float(), network)
                if x is None:
                    comparison.skipped += 1
                    continue
                comparison.samples += 1
                after.append(
                    add(comparison, model, network, run, x, sample))
            if evaluators and not comparison.skipped:
                before = model.test_step(copy.deepcopy(batch))
                evaluators[0].process(before, batch)
                evaluators[1].process(after, batch)
        if dynamic_batch or dynamic_size:
            _compare_other_shapes(comparison, Segmentor(model), run, x,
                                  dynamic_batch, dynamic_size)
        if evaluators and comparison.samples == len(dataset):
            before, after = _evaluate(evaluators, comparison.samples)
            comparison.metrics = {k: (before[k], after[k]) for k in before}
    comparison.check(precision, max_drop)
    return comparison


def _compare_other_shapes(comparison, reference, run, x, batch: bool,
                          size: bool) -> None:
    height, width = x.shape[2:]
    inputs = [torch.cat([x, x.flip(3), x.flip(2)])] if batch else []
    for other in ((height + 32, width), (height, width + 33)) if size else ():
        inputs.append(F.interpolate(x, other))
    for x in inputs:
        for a, b in zip(reference(x)[0].split(1), run(x)[0].split(1)):
            comparison.logits.add('logits', a, b)


def fit(x: Tensor, network: nn.Module) -> Tensor | None:
    """Pad an image, at the right and at the bottom, to a network's input.

    Returns:
        Tensor | None: None where the image is larger. A network that takes
        any size gets the image as it is.
    """
    size = getattr(network, 'input_size', None)
    if size is None:
        return x
    bottom, right = (a - b for a, b in zip(size, x.shape[2:]))
    if min(bottom, right) < 0:
        return None
    return F.pad(x, (0, right, 0, bottom))


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int],
                threshold: float) -> Tensor:
    """Resize masks over boxes to masks over the image.

    Args:
        masks (Tensor): Probabilities over each box, (D, h, w).
        boxes (Tensor): x1, y1, x2, y2 in pixels of the image, (D, 4).
        size (tuple[int, int]): Height and width of the image.
        threshold (float): The lowest probability inside of a mask.

    Returns:
        Tensor: (D, height, width), bool.
    """
    grids = []
    for axis, side in ((0, size[1]), (1, size[0])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        centre = torch.arange(side, device=boxes.device) + 0.5
        grids.append((centre - low) / (high - low) * 2 - 1)
    x, y = grids
    shape = len(boxes), *size
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)],
                       3)
    pasted = F.grid_sample(masks[:, None], grid, align_corners=False)
    return pasted[:, 0] >= threshold


def _at_input_size(sample, x: Tensor):
    """A data sample without annotations, of the size of the input."""
    size = tuple(x.shape[2:])
    return type(sample)(
        metainfo=dict(
            img_shape=size,
            ori_shape=size,
            pad_shape=size,
            batch_input_shape=size,
            scale_factor=(1.0, 1.0)))


def _add_boxes(comparison, model, network, run, x, sample):
    reference, = model.predict(x, [_at_input_size(sample, x)], rescale=False)
    outputs = dict(zip(network.output_names, run(x)))
    found = InstanceData(
        bboxes=outputs['boxes'],
        scores=outputs['scores'],
        labels=outputs['labels'].long())

    def paste(boxes, size):
        return paste_masks(outputs['masks'], boxes, size,
                           network.test_cfg.mask_thr_binary)

    if 'masks' in outputs:
        found.masks = paste(found.bboxes, x.shape[2:])
    comparison.add_detections(reference.pred_instances, found)

    # Rescaled to the image before the pipeline, as evaluation needs it.
    scaled = found.clone()
    height, width = sample.ori_shape[:2]
    scale = found.bboxes.new_tensor(sample.get('scale_factor', (1, 1)))
    scaled.bboxes = (found.bboxes / scale.repeat(2)).clamp(
        found.bboxes.new_zeros(4),
        found.bboxes.new_tensor([width, height] * 2))
    if 'masks' in outputs:
        scaled.masks = paste(found.bboxes / scale.repeat(2), (height, width))
    predicted = sample.clone()
    predicted.pred_instances = scaled
    return predicted


def _add_labels(comparison, model, network, run, x, sample):
    reference, = model.predict(x, [_at_input_size(sample, x)])
    outputs = dict(zip(network.output_names, run(x)))
    # The toolbox's logits have no batch dimension.
    comparison.logits.add('logits', reference.seg_logits.data[None],
                          outputs['logits'])
    comparison.add_labels(reference.pred_sem_seg.data,
                          outputs['labels'].to(torch.int64))
    predicted, = model.postprocess_result(outputs['logits'], [sample.clone()])
    return predicted


def _evaluate(evaluators: list[Evaluator], size: int) -> list[dict]:
    # The tables that they print and log are left out.
    logging.disable(logging.INFO)
    try:
        with redirect_stdout(io.StringIO()):
            return [evaluator.evaluate(size) for evaluator in evaluators]
    finally:
        logging.disable(logging.NOTSET)


def _val_dataset(cfg: Config) -> Dataset | None:
    """The validation set; None where there is no data or no evaluator."""
    loader = cfg.get('val_dataloader')
    if not cfg.get('val_evaluator') or not loader or missing_data(
            loader.dataset):
        return None
    with scope_of(cfg):
        return DATASETS.build(copy.deepcopy(loader.dataset))


def _evaluators(cfg: Config, dataset: Dataset) -> list[Evaluator]:
    """Two of the config's evaluators, for a data set."""
    with scope_of(cfg):
        evaluators = [
            Evaluator(copy.deepcopy(cfg.val_evaluator)) for _ in range(2)
        ]
    for evaluator in evaluators:
        evaluator.dataset_meta = dataset.metainfo
    return evaluators
