# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Whether two models of one toolbox give the same answers."""
import copy
import math

import torch
from torch import Tensor, nn

from ..utils.errors import UserError


class OutputComparison:
    """Relative errors of output tensors, sample by sample.

    The error of a tensor is ||output - reference|| / ||reference||, with
    Euclidean norms in float64, so that a large output hides no error of
    another one.

    Args:
        tol (float): The maximum allowed relative error.

    Attributes:
        count (int): How many tensors were compared.
        max_rel (float): The maximum relative error; inf where an output is
            not finite or has another shape.
        max_abs (float): The maximum absolute difference.
    """

    # Outputs of two inputs that differ by less are rounding errors.
    SAME = 1e-6

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self.count = 0
        self.max_rel = 0.0
        self.max_abs = 0.0
        self._worst = ''
        self._problem = ''
        self._first: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}
        self._varies = False

    def add(self, name: str, reference: Tensor, output: Tensor) -> None:
        """Compare one output tensor of one sample.

        Args:
            name (str): What the tensor is, the same for each sample.
            reference (Tensor): The expected tensor, (1, ...).
            output (Tensor): The tensor to check.
        """
        self.count += 1
        sample = self._samples[name] = self._samples.get(name, 0) + 1
        where = f'{name} of sample {sample}'
        reference, output = reference.double(), output.double()
        first = self._first.setdefault(name, reference)
        self._varies |= (
            first.shape != reference.shape
            or _relative_error(first, reference) > self.SAME)
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

    def check(self, what: str) -> None:
        """Refuse outputs that are not, or cannot be seen to be, the same.

        Args:
            what (str): What was compared, to begin the message with.

        Raises:
            UserError: If nothing was compared, a number is not finite, shapes
                differ, the reference is the same for all samples, or a
                relative error is over the tolerance.
        """
        problem = self._problem
        if not self.count:
            problem = 'no outputs were compared'
        elif not problem and self.max_rel > self.tol:
            problem = (f'the relative error of {self._worst} is '
                       f'{self.max_rel:.3g}, over the tolerance {self.tol:g}')
        elif (not problem and not self._varies
              and max(self._samples.values()) > 1):
            problem = ('the reference outputs are the same for all samples, '
                       'so that comparing them shows nothing')
        if problem:
            raise UserError(f'{what}: {problem}')


def _relative_error(reference: Tensor, output: Tensor) -> float:
    difference = (output - reference).norm().item()
    return difference / max(reference.norm().item(), 1e-300)


class Comparison:
    """Differences between two models, collected batch by batch.

    The dense outputs (logits of a classifier, feature maps of a detector or a
    segmentor) are compared number by number; what the models predict from
    them is compared as a user reads it: top-1 labels, maps of labels, or
    detections, each of which must have a counterpart of the same label within
    0.1 px and 1e-4 of score.
    """

    BOX_TOL = 0.1  # pixels
    SCORE_TOL = 1e-4
    MIN_AGREEMENT = 0.99

    def __init__(self) -> None:
        self.samples = 0
        self.max_abs = 0.0
        self.largest = 0.0
        # name of what is predicted: [how many, how many of them alike]
        self.agreement: dict[str, list[int]] = {}

    @property
    def max_rel(self) -> float:
        """float: Largest difference over the largest output."""
        return self.max_abs / self.largest if self.largest else self.max_abs

    def add(self, reference: nn.Module, other: nn.Module, batch: dict) -> None:
        """Compare on one batch, as a data loader gives it."""
        answers = [
            model.test_step(copy.deepcopy(batch))
            for model in (reference, other)
        ]
        for a, b in zip(*answers, strict=True):
            self.samples += 1
            self._add_predictions(a, b)
        # A detector's outputs are sorted and thresholded on their way; its
        # feature maps are the last that compares number by number.
        detects = 'pred_instances' in answers[0][0]
        dense = _feature_maps if detects else _outputs
        for a, b in zip(
                dense(reference, batch), dense(other, batch), strict=True):
            difference = (a.double() - b.double()).abs().max().item()
            if not math.isfinite(difference):
                difference = math.inf
            self.max_abs = max(self.max_abs, difference)
            self.largest = max(self.largest, a.abs().max().item())

    def _add_predictions(self, a, b) -> None:
        if 'pred_label' in a:
            self._count('top-1 agreement', a.pred_label == b.pred_label)
        if 'pred_sem_seg' in a:
            self._count('pixels with the same label',
                        a.pred_sem_seg.data == b.pred_sem_seg.data)
        if 'pred_instances' in a:
            self._add_detections(a.pred_instances, b.pred_instances)

    def _add_detections(self, a, b) -> None:
        alike = torch.zeros(len(a), dtype=torch.bool)
        free = torch.ones(len(b), dtype=torch.bool)
        for i in range(len(a)):
            match = (
                free & (b.labels == a.labels[i]) &
                ((b.bboxes - a.bboxes[i]).abs().amax(1) <= self.BOX_TOL) &
                ((b.scores - a.scores[i]).abs() <= self.SCORE_TOL)).nonzero()
            if not len(match):
                continue
            j = match[0, 0]
            alike[i], free[j] = True, False
            if 'masks' in a:
                self._count(
                    'mask pixels alike',
                    torch.as_tensor(a.masks[i]) == torch.as_tensor(
                        b.masks[j]))
        # What only the other detects is a disagreement too.
        self._count('detections alike',
                    torch.cat([alike, torch.zeros_like(free[free])]))

    def _count(self, name: str, equal: Tensor) -> None:
        counts = self.agreement.setdefault(name, [0, 0])
        counts[0] += equal.numel()
        counts[1] += int(equal.sum())

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each finding."""
        rows = [('largest absolute difference', f'{self.max_abs:.3g}'),
                ('largest relative difference', f'{self.max_rel:.3g}')]
        for name, (total, alike) in self.agreement.items():
            share = 100 * alike / total if total else 100
            rows.append((name, f'{share:.2f} % of {total:,}'))
        return rows

    def check(self, tol: float) -> None:
        """Refuse a difference that is over a tolerance.

        Raises:
            UserError: If it is.
        """
        if not self.max_rel <= tol:
            raise UserError(
                f'the merged model differs by {self.max_rel:.3g} of the '
                f'largest output, more than the tolerance {tol:g}')
        for name, (total, alike) in self.agreement.items():
            if alike < self.MIN_AGREEMENT * total:
                raise UserError(
                    f'the merged model predicts otherwise: {name} is '
                    f'{alike} of {total}')


def _preprocessed(model: nn.Module, batch: dict) -> dict:
    return model.data_preprocessor(copy.deepcopy(batch), False)


def _outputs(model: nn.Module, batch: dict) -> list[Tensor]:
    data = _preprocessed(model, batch)
    return _as_list(model(data['inputs'], data.get('data_samples')))


def _feature_maps(model: nn.Module, batch: dict) -> list[Tensor]:
    return _as_list(model.extract_feat(_preprocessed(model, batch)['inputs']))


def _as_list(outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
