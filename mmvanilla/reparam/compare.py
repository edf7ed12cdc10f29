# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The one verification: compare a converted model with its reference."""
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.errors import UserError
from ..utils.terminal import some
from .samples import Samples

# For each precision the largest relative error of an output, and the smallest
# share of predictions in agreement.
TOLERANCES = dict(
    fp32=(1e-4, 0.99), fp16=(0.02, 0.98), bf16=(0.1, 0.98), int8=(1.0, 0.9))
BOX_TOL = 0.1  # pixels, of each corner
SCORE_TOL = 1e-3
# References of two samples that differ by less are equal except for rounding.
SAME = 1e-6


@dataclass
class Result:
    """What a model returns for one sample."""

    # Outputs by name; names of feature maps begin with "feature".
    tensors: dict[str, Tensor]
    # A data sample with pred_label, pred_instances or pred_sem_seg.
    prediction: object = None


@dataclass
class Comparison:
    """What :func:`compare` found."""

    samples: Samples
    precision: str
    tol: float
    what: str = ''  # is compared: messages begin with it
    max_rel: float = 0.0
    max_abs: float = 0.0
    # Of each kind of prediction: how many there are, how many agree.
    counts: dict[str, list[float]] = field(default_factory=dict)
    # Names with their values before and after.
    accuracy: dict[str, tuple[float, float]] = field(default_factory=dict)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    _worst: str = ''
    # The detection of highest score that only one model has: score, image.
    _alone: tuple[float, str] = (0.0, '')
    # The first reference; whether one of the others differs.
    _first: dict[str, Tensor] = field(default_factory=dict)
    _varies: dict[str, bool] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each result, for a table."""
        rows = [('compared on', str(self.samples))]
        if self._first:
            rows += [('maximum relative error', f'{self.max_rel:.3g}'),
                     ('tolerance', f'{self.tol:g}'),
                     ('maximum absolute difference', f'{self.max_abs:.3g}')]
        rows += [(name, f'{100 * equal / total:.2f} % of {total:,}'
                  if total else 'none predicted')
                 for name, (total, equal) in self.counts.items()
                 # What lower precisions are not judged by.
                 if self.precision == 'fp32' or name == 'top-1 agreement']
        rows += [(name, f'{before:.4g} before, {after:.4g} after')
                 for name, (before, after) in (
                     self.accuracy | self.metrics).items()]
        return rows + self.notes

    def add(self, sample: int, reference: Result, other: Result) -> None:
        """Compare the results of one sample, counted from 1."""
        tensors, others = reference.tensors, other.tensors
        if tensors.keys() != others.keys():
            different = some(sorted(tensors.keys() ^ others.keys()))
            self._fail(f'only one of the models has {different}')
        for name, tensor in tensors.items():
            self._add_tensor(name, sample, tensor.double().cpu(),
                             others[name].double().cpu())
        a, b = reference.prediction, other.prediction
        if a is None:
            return
        if 'pred_label' in a:
            same = torch.equal(a.pred_label, b.pred_label)
            self._count('top-1 agreement', 1, same)
        for key in ('pred_sem_seg', 'pred_panoptic_seg'):
            if key in a:
                x, y = (data.get(key).get('sem_seg', data.get(key).get('data'))
                        for data in (a, b))
                self._count('pixels with the same label', x.numel(),
                            (x == y).sum().item() if x.shape == y.shape else 0)
        if 'pred_instances' in a:
            self._add_detections(a.get('img_path') or f'sample {sample}',
                                 a.pred_instances, b.pred_instances)

    def _add_tensor(self, name: str, sample: int, a: Tensor, b: Tensor):
        where = f'{name} of sample {sample}'
        first = self._first.setdefault(name, a)
        if first is not a:
            self._varies[name] = (
                self._varies.get(name, False) or first.shape != a.shape
                or relative_error(first, a) > SAME)
        if a.shape != b.shape:
            self._fail(f'{where} has shape {tuple(b.shape)}, not '
                       f'{tuple(a.shape)}')
        if not (a.isfinite().all() and b.isfinite().all()):
            self._fail(f'{where} has numbers that are not finite')
        error = relative_error(a, b)
        if error > self.max_rel:
            self.max_rel, self._worst = error, where
        if a.numel():
            self.max_abs = max(self.max_abs, (b - a).abs().max().item())

    def _add_detections(self, image: str, a: InstanceData,
                        b: InstanceData) -> None:
        pairs = match_detections(a, b)
        for data, matched in zip((a, b), list(zip(*pairs)) or [(), ()]):
            for i in {*range(len(data))}.difference(matched):
                self._alone = max(self._alone, (data.scores[i].item(), image))
        # Those that only one of the models has are disagreements.
        self._count('detections in agreement', len(a) + len(b) - len(pairs),
                    len(pairs))
        for i, j in pairs if 'masks' in a else ():
            x, y = (torch.as_tensor(m).bool()
                    for m in (a.masks[i], b.masks[j]))
            union = (x | y).sum().item()
            self._count('intersection over union of masks', 1,
                        (x & y).sum().item() / union if union else 1)

    def _count(self, name: str, total: int, equal: float) -> None:
        counts = self.counts.setdefault(name, [0, 0])
        counts[0] += total
        counts[1] += equal

    def _fail(self, problem: str) -> NoReturn:
        raise UserError(f'{self.what}: {problem}')

    def check(self, max_drop: float) -> None:
        """Raise UserError if the results differ, or nothing was compared."""
        self._judge_tensors()
        self._judge_predictions()
        if self.precision != 'fp32':
            self._judge_drop(max_drop)

    def _judge_tensors(self) -> None:
        if not self.max_rel <= self.tol:
            self._fail(f'the relative error of {self._worst} is '
                       f'{self.max_rel:.3g}, over the tolerance {self.tol:g}')
        if not any(tensor.numel() for tensor in self._first.values()) and (
                not any(total for total, _ in self.counts.values())):
            self._fail('nothing was compared: ' + (
                'the model detects nothing; lower its test_cfg.score_thr'
                if self.counts else 'there are no outputs'))
        varying = {name for name, varies in self._varies.items() if varies}
        if self._varies and not varying:
            self._fail('the reference outputs are the same for all samples, '
                       'so that comparing them shows nothing: use the weights '
                       'of a trained network, or other images')
        outputs = {x for x in self._varies if not x.startswith('feature')}
        if outputs and not outputs & varying:
            self.notes.append(('the outputs are the same for all samples',
                               'compared by the feature maps'))

    def _judge_predictions(self) -> None:
        share = TOLERANCES[self.precision][1]
        for name, (total, equal) in self.counts.items():
            allowed = (1 - share) * total
            if self.precision != 'fp32':
                # Others are judged by metrics; on random images classes are
                # close to each other, and one sample shows no share.
                if name != 'top-1 agreement' or self.samples.random:
                    continue
                allowed = max(allowed, 1)
            if total - equal > allowed + 1e-9:
                score, image = self._alone
                self._fail(f'the predictions differ: {name}: {equal:.6g} of '
                           f'{total:,} agree' + (
                               '; of those that only one model has, that of '
                               f'the highest score, {score:.3g}, is in {image}'
                               '. Where only low scores differ, raise '
                               "test_cfg.score_thr" if image else ''))

    def _judge_drop(self, max_drop: float) -> None:
        judged = {name: pair for name, pair in self.metrics.items()
                  if name.endswith(('mAP', 'mIoU'))}
        if 'top-1 agreement' in self.counts:
            judged = self.accuracy
            step = 100 / self.counts['top-1 agreement'][0]
            if judged and step > max_drop:
                max_drop = step
                self.notes.append(('smallest drop that the samples show',
                                   f'{step:.3g} points'))
        elif self.counts and not judged:
            self._fail(
                f'{self.precision} is judged by AP or mIoU, and none was '
                'measured: compare on the whole validation set, whose images '
                "must fit the network's input, with a val_evaluator that "
                'gives one of them')
        if judged:
            self.notes.append((f'{self.precision} is judged by',
                               f'the drop of {", ".join(judged)}'))
        for name, (before, after) in judged.items():
            # mmdet's AP is from 0 to 1, the others are in per cent.
            drop = (before - after) * (100 if name.endswith('mAP') else 1)
            if not drop <= max_drop + 1e-9:
                self._fail(f'{self.precision} lowers {name} by {drop:.2f} '
                           f'points, from {before:.4g} to {after:.4g}, more '
                           f'than the allowed {max_drop:.3g}')


@torch.no_grad()
def compare(reference: Callable[[dict], Result],
            candidate: Callable[[dict], Result], samples: Samples | list[dict],
            tol: float | None = None, precision: str = 'fp32',
            max_drop: float = 1.0, what: str = 'the candidate',
            metrics: Callable[[], dict] | None = None) -> Comparison:
    """Compare a candidate with its reference, and refuse it if they differ.

    Compared are, sample by sample, the outputs by their relative error
    ``||output - reference|| / ||reference||`` in float64, and the
    predictions: top-1 labels and label maps for equality, detections by label,
    box and score, the masks of matching detections by intersection over union.
    In lower precisions the drop of accuracy, AP or mIoU is judged instead of
    detections, masks and label maps.

    Args:
        reference (Callable): From a batch of one sample to a :class:`Result`.
        candidate (Callable): The same of what is to be checked.
        samples (Samples | list[dict]): Batches as data loaders yield them.
        tol (float, optional): The largest allowed relative error in fp32.
            Defaults to None: 1e-4.
        precision (str): 'fp32', 'fp16', 'bf16' or 'int8'. Defaults to 'fp32'.
        max_drop (float): The largest allowed drop of the metric in lower
            precisions, in percentage points. Defaults to 1.0.
        what (str): What is checked; messages begin with it.
        metrics (Callable, optional): Called after the last sample: a dict of
            the values before and after of each metric. Lower precisions of
            detectors need one that ends in 'mAP', of segmentors in 'mIoU'.
            Defaults to None.

    Returns:
        Comparison: Errors and agreement.

    Raises:
        UserError: If they differ by more, or the comparison shows nothing.
    """
    if not isinstance(samples, Samples):
        samples = Samples(list(samples))
    if precision != 'fp32' or tol is None:
        tol = TOLERANCES[precision][0]
    found = Comparison(samples, precision, tol, what)
    right = []
    for i, batch in enumerate(samples.batches, 1):
        results = [m(copy.deepcopy(batch)) for m in (reference, candidate)]
        found.add(i, *results)
        sample, = batch.get('data_samples') or [{}]
        label = sample.get('gt_label')
        if label is not None and 'top-1 agreement' in found.counts and (
                label.numel() == 1):  # not of several labels
            right.append([torch.equal(r.prediction.pred_label, label)
                          for r in results])
    if right:
        found.accuracy['accuracy/top1'] = tuple(
            100 * sum(column) / len(column) for column in zip(*right))
    found.metrics = metrics() if metrics else {}
    found.check(max_drop)
    return found


def relative_error(reference: Tensor, output: Tensor) -> float:
    """||output - reference|| / ||reference||."""
    difference = (output - reference).norm().item()
    return difference / max(reference.norm().item(), 1e-300)


def match_detections(a: InstanceData,
                     b: InstanceData) -> list[tuple[int, int]]:
    """Pair, by index, the detections of two models that agree in one image."""
    free = torch.ones(len(b), dtype=torch.bool)
    pairs = []
    for i in range(len(a)):
        box = (b.bboxes - a.bboxes[i]).abs().amax(1) / BOX_TOL
        score = (b.scores - a.scores[i]).abs() / SCORE_TOL
        candidates = (free & (b.labels == a.labels[i]) & (box <= 1)
                      & (score <= 1)).nonzero()[:, 0]
        if len(candidates):
            # Of boxes that are alike, the one with the nearest score.
            j = candidates[(box + score)[candidates].argmin()].item()
            free[j] = False
            pairs.append((i, j))
    return pairs
