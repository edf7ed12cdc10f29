# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare outputs and predictions of two models."""
import math

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.errors import UserError


class OutputComparison:
    """Relative errors of output tensors, sample by sample.

    The error of a tensor is ||output - reference|| / ||reference||, with
    Euclidean norms in float64. Each tensor has its own error, so that a large
    output does not hide the error of a small one.

    Args:
        tol (float): The maximum allowed relative error.

    Attributes:
        count (int): Number of compared tensors.
        max_rel (float): The maximum relative error; inf where an output is
            not finite or has another shape.
        max_abs (float): The maximum absolute difference.
    """

    # References of two samples whose relative difference is at most this are
    # the same but for rounding.
    SAME = 1e-6

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self.count = 0
        self._numbers = 0
        self.max_rel = 0.0
        self.max_abs = 0.0
        self._worst = ''
        self._problem = ''
        self._first: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}
        self._varied: set[str] = set()

    def add(self, name: str, reference: Tensor, output: Tensor) -> None:
        """Compare one output tensor of one sample.

        Args:
            name (str): Name of the output, the same for each sample.
            reference (Tensor): The expected tensor, (1, ...).
            output (Tensor): The tensor to check.
        """
        self.count += 1
        self._numbers += reference.numel()
        sample = self._samples[name] = self._samples.get(name, 0) + 1
        where = f'{name} of sample {sample}'
        reference, output = reference.double(), output.double()
        first = self._first.setdefault(name, reference)
        if (first.shape != reference.shape
                or _relative_error(first, reference) > self.SAME):
            self._varied.add(name)
        if reference.shape != output.shape:
            self._fail(f'{where} has shape {tuple(output.shape)}, not '
                       f'{tuple(reference.shape)}')
            return
        for kind, tensor in (('reference', reference), ('output', output)):
            if not tensor.isfinite().all():
                self._fail(f'{where}: the {kind} has numbers that are not '
                           'finite')
                return
        error = _relative_error(reference, output)
        if error > self.max_rel:
            self.max_rel, self._worst = error, where
        if reference.numel():
            self.max_abs = max(self.max_abs,
                               (output - reference).abs().max().item())

    def _fail(self, problem: str) -> None:
        self._problem = self._problem or problem
        self.max_rel = self.max_abs = math.inf

    @property
    def constant(self) -> list[str]:
        """Names of outputs whose reference is the same for all samples."""
        return [name for name, count in self._samples.items()
                if count > 1 and name not in self._varied]

    def check(self, what: str) -> None:
        """Refuse outputs that differ or whose comparison shows nothing.

        Args:
            what (str): What was compared; the message begins with it.

        Raises:
            UserError: If nothing was compared, a number is not finite, shapes
                differ, a relative error is over the tolerance, or every
                output's reference is the same for all samples.
        """
        problem = self._problem
        if not problem and not self._numbers:
            problem = 'no outputs were compared'
        elif not problem and self.max_rel > self.tol:
            problem = (f'the relative error of {self._worst} is '
                       f'{self.max_rel:.3g}, over the tolerance {self.tol:g}')
        elif not problem and self.constant and not self._varied:
            problem = ('the reference outputs are the same for all samples, '
                       'so that comparing them shows nothing')
        if problem:
            raise UserError(f'{what}: {problem}')


def _relative_error(reference: Tensor, output: Tensor) -> float:
    difference = (output - reference).norm().item()
    return difference / max(reference.norm().item(), 1e-300)


def match_detections(a: InstanceData, b: InstanceData, box_tol: float,
                     score_tol: float) -> list[tuple[int, int]]:
    """Pair the detections of two models for one image.

    In the order of ``a``, each detection takes the nearest of those in ``b``
    that are free, of the same label and within both tolerances.

    Args:
        a (InstanceData): Detections, with ``bboxes`` (x1, y1, x2, y2 in
            pixels), ``labels`` and ``scores``.
        b (InstanceData): Those of the other model.
        box_tol (float): The maximum difference of a corner, in pixels.
        score_tol (float): The maximum difference of a score.

    Returns:
        list[tuple[int, int]]: Indices in ``a`` and ``b`` of each pair.
    """
    free = torch.ones(len(b), dtype=torch.bool)
    pairs = []
    for i in range(len(a)):
        distance = (b.bboxes - a.bboxes[i]).abs().amax(1)
        candidates = (
            free & (b.labels == a.labels[i]) & (distance <= box_tol) &
            ((b.scores - a.scores[i]).abs() <= score_tol)).nonzero()[:, 0]
        if len(candidates):
            j = candidates[distance[candidates].argmin()].item()
            free[j] = False
            pairs.append((i, j))
    return pairs


class PredictionAgreement:
    """Agreement of a model's predictions in two forms, sample by sample.

    Top-1 labels and label maps are compared for equality. A detection agrees
    if the other model has one of the same label with box corners within 0.1
    pixels and a score within 1e-4; masks of such pairs are compared pixel by
    pixel. At least 99 % of each kind must agree.
    """

    BOX_TOL = 0.1  # pixels
    SCORE_TOL = 1e-4
    MIN_AGREEMENT = 0.99

    def __init__(self) -> None:
        # kind of prediction: [number of them, number that agree]
        self.counts: dict[str, list[int]] = {}

    def add(self, reference, other) -> None:
        """Compare two models' data samples of one image."""
        if 'pred_label' in reference:
            self._count('top-1 agreement',
                        reference.pred_label == other.pred_label)
        for name in ('pred_sem_seg', 'pred_panoptic_seg'):
            if name in reference:
                self._count('pixels with the same label',
                            _label_map(reference, name) == _label_map(
                                other, name))
        if 'pred_instances' in reference:
            self._add_detections(reference.pred_instances,
                                 other.pred_instances)

    def _add_detections(self, a: InstanceData, b: InstanceData) -> None:
        pairs = match_detections(a, b, self.BOX_TOL, self.SCORE_TOL)
        if 'masks' in a:
            for i, j in pairs:
                self._count(
                    'mask pixels in agreement',
                    torch.as_tensor(a.masks[i]) == torch.as_tensor(
                        b.masks[j]))
        # A detection of the other model alone is a disagreement too.
        matched = torch.zeros(len(a) + len(b) - len(pairs), dtype=torch.bool)
        matched[:len(pairs)] = True
        self._count('detections in agreement', matched)

    def _count(self, name: str, equal: Tensor) -> None:
        counts = self.counts.setdefault(name, [0, 0])
        counts[0] += equal.numel()
        counts[1] += int(equal.sum())

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each kind of prediction, for a table."""
        return [(name, f'{100 * equal / total:.2f} % of {total:,}'
                 if total else 'none predicted')
                for name, (total, equal) in self.counts.items()]

    def check(self, what: str) -> None:
        """Refuse less than 99 % agreement.

        Args:
            what (str): What was compared; the message begins with it.

        Raises:
            UserError: If less than 99 % of a kind of prediction agree.
        """
        for name, (total, equal) in self.counts.items():
            if equal < self.MIN_AGREEMENT * total:
                raise UserError(f'{what}: the predictions differ: {name}: '
                                f'{equal} of {total}')


def _label_map(sample, name: str) -> Tensor:
    value = sample.get(name)
    return value.sem_seg if 'sem_seg' in value else value.data
