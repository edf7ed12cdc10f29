# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import math

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmvanilla.reparam.verify import (
    OutputComparison,
    PredictionAgreement,
    match_detections,
)
from mmvanilla.utils.errors import UserError


def test_error_is_relative_to_each_tensor():
    comparison = OutputComparison(1e-3)
    for seed in range(2):
        torch.manual_seed(seed)
        large, small = torch.randn(1, 8) * 1e4, torch.randn(1, 8)
        off = small + 0.01 * small.norm() * torch.eye(8)[:1]
        comparison.add('large', large, large)
        comparison.add('small', small, off if seed else small)
    assert comparison.count == 4
    assert comparison.max_rel == pytest.approx(0.01, rel=1e-4)
    assert comparison.max_abs == pytest.approx(
        0.01 * small.norm().item(), rel=1e-4)
    with pytest.raises(
            UserError,
            match=r'^model: the relative error of small of sample 2 is 0\.01, '
            r'over the tolerance 0\.001$'):
        comparison.check('model')


def compared(references, outputs):
    comparison = OutputComparison(0.5)
    for reference, output in zip(references, outputs, strict=True):
        comparison.add('logits', reference, output)
    return comparison


def test_same_outputs_pass():
    a, b = torch.randn(2, 1, 4)
    compared([a, b], [a, b]).check('model')
    compared([a], [a]).check('model')  # one sample cannot vary
    compared([a, torch.zeros(1, 0)], [a, torch.zeros(1, 0)]).check('model')


A, B = torch.eye(2)[:1], torch.eye(2)[1:]
NAN, INF = A.clone().fill_(math.nan), A.clone().fill_(math.inf)


@pytest.mark.parametrize('references, outputs, message', [
    ([], [], 'no outputs were compared'),
    ([A, B], [A, NAN], 'the output has numbers that are not finite'),
    ([A, NAN], [A, NAN], 'the reference has numbers that are not finite'),
    ([A, INF], [A, INF], 'numbers that are not finite'),
    ([A, B], [A, B.T], r'has shape \(2, 1\), not \(1, 2\)'),
    ([A, B, 0 * A], [A, B, 1e-9 * A], 'of sample 3'),
    ([A, A], [A, A], 'the same for all samples'),
    ([A, A * (1 + 1e-7)], [A, A], 'the same for all samples'),
])
def test_refused(references, outputs, message):
    with pytest.raises(UserError, match=message):
        compared(references, outputs).check('model')


def detections(*rows) -> InstanceData:
    """Of rows of (shift, score, label): a 10 x 10 box, shifted in pixels."""
    shift, scores, labels = torch.tensor(rows, dtype=torch.float64).T
    box = torch.tensor([0., 0., 10., 10.], dtype=torch.float64)
    return InstanceData(
        bboxes=box + shift[:, None], scores=scores, labels=labels.long())


FOUND = detections((0, 0.9, 1), (0.05, 0.9, 1), (40, 0.5, 2))


@pytest.mark.parametrize('other, pairs', [
    (FOUND, [(0, 0), (1, 1), (2, 2)]),
    # The nearest, not the first that is near enough.
    (FOUND[[1, 2, 0]], [(0, 2), (1, 0), (2, 1)]),
    # Each of them once.
    (FOUND[[0, 2]], [(0, 0), (2, 1)]),
    (detections((40, 0.5, 1), (40.2, 0.5, 2), (40, 0.502, 2)), []),
    (detections((40.09, 0.5009, 2)), [(2, 0)]),
])
def test_match_detections(other, pairs):
    assert match_detections(FOUND, other, 0.1, 1e-3) == pairs


@pytest.mark.parametrize('other, equal, total', [
    (FOUND, 3, 3),
    (FOUND[:2], 2, 3),
    (InstanceData.cat([FOUND, FOUND[:1]]), 3, 4),
    (FOUND[:0], 0, 3),
])
def test_detections_of_either_model_alone_disagree(other, equal, total):
    agreement = PredictionAgreement()
    agreement.add(
        BaseDataElement(pred_instances=FOUND),
        BaseDataElement(pred_instances=other))
    assert agreement.counts == {'detections in agreement': [total, equal]}
    if equal < total:
        with pytest.raises(UserError, match=f'{equal} of {total}'):
            agreement.check('model')
    else:
        agreement.check('model')
