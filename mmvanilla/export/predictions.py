# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What an exported detector or segmentor predicts, beside the toolbox."""
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..utils.building import missing_data, scope_of
from ..utils.errors import UserError
from .segmentors import Segmentor

Runner = Callable[[Tensor], list[Tensor]]


@dataclass
class PredictionComparison:
    """Predictions of an exported model, beside those of the toolbox.

    A detection is matched where the other side has one of the same label,
    within 0.1 px and 1e-3 of score.

    Attributes:
        samples (int): How many images were compared.
        skipped (int): How many were larger than the network's input.
        counts (dict): For 'detections matched', 'mask pixels equal' and
            'pixels with the same label': how many there are, and how many of
            them are.
        max_box (float): Largest difference of matched boxes, in pixels.
        max_score (float): Largest difference of their scores.
        metrics (dict): Each of the config's metrics, before and after; empty
            where not the whole validation set was compared.
    """

    samples: int = 0
    skipped: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    max_box: float = 0.0
    max_score: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    BOX_TOL = 0.1
    SCORE_TOL = 1e-3
    MIN_SHARE = 0.99

    def add_detections(self, a: InstanceData, b: InstanceData) -> None:
        """Match the toolbox's detections of one image with the exported."""
        free = torch.ones(len(b), dtype=torch.bool)
        matched = 0
        for i in range(len(a)):
            box = (b.bboxes - a.bboxes[i]).abs().amax(1)
            score = (b.scores - a.scores[i]).abs()
            candidates = (
                free & (b.labels == a.labels[i]) & (box <= self.BOX_TOL) &
                (score <= self.SCORE_TOL)).nonzero()[:, 0]
            if not len(candidates):
                continue
            j = candidates[box[candidates].argmin()]
            free[j] = False
            matched += 1
            self.max_box = max(self.max_box, box[j].item())
            self.max_score = max(self.max_score, score[j].item())
            if 'masks' in b:
                # Of either mask: background makes any two alike.
                masks = torch.as_tensor(a.masks[i]), b.masks[j]
                self._count('mask pixels equal',
                            (masks[0] | masks[1]).sum(),
                            (masks[0] & masks[1]).sum())
        # One that only the exported model has is a difference too.
        self._count('detections matched', len(a) + free.sum(), matched)

    def add_labels(self, a: Tensor, b: Tensor) -> None:
        """Compare the maps of labels of one image."""
        self._count('pixels with the same label', a.numel(), (a == b).sum())

    def _count(self, name: str, total: int, equal: int) -> None:
        counts = self.counts.setdefault(name, [0, 0])
        counts[0] += int(total)
        counts[1] += int(equal)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each finding."""
        rows = []
        for name, (total, equal) in self.counts.items():
            rows.append((name, f'{equal:,} of {total:,}'))
        if 'detections matched' in self.counts:
            rows += [('largest difference of a box', f'{self.max_box:.3g} px'),
                     ('largest difference of a score',
                      f'{self.max_score:.3g}')]
        rows += [(name, f'{before:.4g} before, {after:.4g} after')
                 for name, (before, after) in self.metrics.items()]
        if self.skipped:
            rows.append(("larger than the network's input, left out",
                         f'{self.skipped}'))
        return rows

    def check(self, what: str) -> None:
        """Refuse predictions that differ, or that there are none of.

        Raises:
            UserError: Saying what differs by how much.
        """
        if not any(total for total, _ in self.counts.values()):
            raise UserError(f'{what}: the toolbox predicts nothing on '
                            f'{self.samples} images, so there is nothing to '
                            'compare; lower model.test_cfg.score_thr')
        for name, (total, equal) in self.counts.items():
            if equal < self.MIN_SHARE * total:
                raise UserError(f'{what} predicts otherwise than the toolbox: '
                                f'{name}: {equal:,} of {total:,}')


def compare_predictions(cfg: Config, model: nn.Module, network: nn.Module,
                        run: Runner,
                        batches: Iterable[dict]) -> PredictionComparison:
    """Compare what an exported model predicts with what the toolbox does.

    Args:
        cfg (Config): The config of the model.
        model (nn.Module): The toolbox's model, merged, in eval mode.
        network (nn.Module): What was exported of it, a
            :class:`DenseDetector`, a :class:`TwoStageDetector` or a
            :class:`Segmentor`.
        run (Callable): The exported file, opened.
        batches (Iterable[dict]): Validation batches, as the data loader gives
            them.

    Returns:
        PredictionComparison: The differences, and the metrics of both.
    """
    comparison = PredictionComparison()
    evaluators = _evaluators(cfg)
    add = _add_labels if isinstance(network, Segmentor) else _add_boxes
    with scope_of(cfg), torch.no_grad():
        for batch in batches:
            data = model.data_preprocessor(copy.deepcopy(batch), False)
            before, after = [], []
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
        if evaluators and comparison.samples == evaluators[2]:
            values = [e.evaluate(comparison.samples) for e in evaluators[:2]]
            comparison.metrics = {
                name: (value, values[1][name])
                for name, value in values[0].items()
            }
    return comparison


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
    """Masks over an image of masks over boxes.

    Args:
        masks (Tensor): Probabilities over each box, (D, h, w).
        boxes (Tensor): x1, y1, x2, y2 in pixels of the image, (D, 4).
        size (tuple[int, int]): Height and width of the image.
        threshold (float): From which probability on a pixel belongs.

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
    """A sample without annotations that is as large as the input."""
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

    # Back to the image as it was before the pipeline.
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
    comparison.add_labels(reference.pred_sem_seg.data,
                          outputs['labels'].to(torch.int64))
    predicted, = model.postprocess_result(outputs['logits'], [sample.clone()])
    return predicted


def _evaluators(cfg: Config) -> tuple[Evaluator, Evaluator, int] | None:
    """Two evaluators of the config, and the size of its validation set."""
    loader = cfg.get('val_dataloader')
    if not cfg.get('val_evaluator') or not loader or missing_data(
            loader.dataset):
        return None
    with scope_of(cfg):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
        evaluators = [
            Evaluator(copy.deepcopy(cfg.val_evaluator)) for _ in range(2)
        ]
    for evaluator in evaluators:
        evaluator.dataset_meta = dataset.metainfo
    return *evaluators, len(dataset)
