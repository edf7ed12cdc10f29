# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import math
from contextlib import nullcontext

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.structures import DataSample

from mmvanilla.reparam.compare import Result, compare, match_detections
from mmvanilla.reparam.samples import Samples
from mmvanilla.utils.errors import UserError


def compared(references: list[Result], outputs: list[Result], **kwargs):
    """Compare results that are there already."""
    samples = kwargs.pop('samples', [{} for _ in references])
    a, b = iter(references), iter(outputs)
    return compare(lambda _: next(a), lambda _: next(b), samples, **kwargs)


def logits(*tensors) -> list[Result]:
    return [Result(dict(logits=tensor)) for tensor in tensors]


def test_error_is_relative_to_each_tensor():
    large, small = torch.randn(2, 1, 8) * 1e4, torch.randn(2, 1, 8)
    off = small[1] + 0.01 * small[1].norm() * torch.eye(8)[:1]
    expected = [Result(dict(large=large[i], small=small[i])) for i in (0, 1)]
    got = [expected[0], Result(dict(large=large[1], small=off))]
    found = compared(expected, got, tol=0.02)
    assert [found.max_rel, found.max_abs] == pytest.approx(
        [0.01, 0.01 * small[1].norm().item()], rel=1e-4)
    with pytest.raises(
            UserError,
            match=r'^x: the relative error of small of sample 2 is 0\.01, '
            r'over the tolerance 0\.001$'):
        compared(expected, got, tol=1e-3, what='x')


A, B = torch.eye(2)[:1], torch.eye(2)[1:]
NAN, INF = A.clone().fill_(math.nan), A.clone().fill_(math.inf)


@pytest.mark.parametrize('references, outputs, message', [
    ([], [], 'nothing was compared'),
    ([A[:, :0]], [A[:, :0]], 'nothing was compared'),
    ([A, B], [A, NAN], 'of sample 2 has numbers that are not finite'),
    ([A, NAN], [A, NAN], 'numbers that are not finite'),
    ([A, INF], [A, INF], 'numbers that are not finite'),
    ([A, B], [A, B.T], r'has shape \(2, 1\), not \(1, 2\)'),
    ([A, B, 0 * A], [A, B, 1e-9 * A], 'of sample 3'),
    ([A, A * (1 + 1e-7)], [A, A], 'same for all samples.*use the weights'),
])
def test_refused(references, outputs, message):
    with pytest.raises(UserError, match=message):
        compared(logits(*references), logits(*outputs), tol=0.5)


def test_constant_outputs_are_compared_by_feature_maps():
    """As of an untrained network, which people export to time it."""
    results = [Result({'logits': A, 'feature 0': x}) for x in (A, B)]
    note = ('the outputs are the same for all samples',
            'compared by the feature maps')
    assert note in compared(results, results).rows()
    assert note not in compared(logits(A, B), logits(A, B)).rows()
    compared(logits(A), logits(A))  # one sample cannot vary


def classified(labels, wrong):
    """Right results, the same with some wrong ones, and labelled samples."""
    right, other = ([
        Result(dict(logits=torch.eye(10)[i:i + 1]),
               DataSample().set_pred_label(9 if wrong_ else i))
        for wrong_, i in zip(flags, labels)
    ] for flags in ([False] * len(labels),
                    [i < wrong for i in range(len(labels))]))
    return right, other, [dict(data_samples=[DataSample().set_gt_label(i)])
                          for i in labels]


@pytest.mark.parametrize('precision, number, wrong, message', [
    ('fp32', 100, 1, None), ('fp32', 100, 2, '98 of 100 agree'),
    ('bf16', 100, 2, None), ('bf16', 100, 3, '97 of 100 agree'),
    ('int8', 100, 10, None), ('int8', 100, 11, '89 of 100 agree'),
    # One of ten does not show less than 98 %.
    ('bf16', 10, 1, None), ('bf16', 10, 2, '8 of 10 agree')])
def test_top_1(precision, number, wrong, message):
    expected, got, _ = classified([i % 9 for i in range(number)], wrong)
    refused = pytest.raises(UserError, match=f'agreement: {message}')
    with refused if message else nullcontext():
        compared(expected, got, precision=precision)
    if message and precision != 'fp32':  # random images' classes are near
        compared(expected, got, precision=precision,
                 samples=Samples([{}] * number, random=True))


@pytest.mark.parametrize('number, wrong, notes', [
    (200, 2, []),
    # One of 16 is 6.25 points, which says nothing about one point.
    (16, 1, [('smallest drop that the samples show', '6.25 points')])])
def test_drop_of_accuracy(number, wrong, notes):
    expected, got, samples = classified([i % 9 for i in range(number)], wrong)
    found = compared(expected, got, samples=samples, precision='int8')
    assert found.accuracy == {
        'accuracy/top1': (100, 100 * (1 - wrong / number))}
    assert found.notes == [
        *notes, ('int8 is judged by', 'the drop of accuracy/top1')]
    expected, got, samples = classified([i % 9 for i in range(200)], 3)
    with pytest.raises(UserError, match=r'accuracy/top1 by 1\.50 points, '
                       r'from 100 to 98\.5'):
        compared(expected, got, samples=samples, precision='int8')


def detections(*rows) -> InstanceData:
    """Of rows of (shift, score, label): a 10 x 10 box, shifted in pixels."""
    shift, scores, labels = torch.tensor(rows, dtype=torch.float64).T
    box = torch.tensor([0., 0., 10., 10.], dtype=torch.float64)
    return InstanceData(
        bboxes=box + shift[:, None], scores=scores, labels=labels.long())


FOUND = detections((0, 0.9, 1), (0.05, 0.9, 1), (40, 0.5, 2))


def detected(*instances) -> list[Result]:
    return [Result({}, BaseDataElement(pred_instances=x)) for x in instances]


@pytest.mark.parametrize('other, pairs', [
    # The nearest, not the first that is near enough.
    (FOUND[[1, 2, 0]], [(0, 2), (1, 0), (2, 1)]),
    (FOUND[[0, 2]], [(0, 0), (2, 1)]),  # each of them once
    (detections((40, 0.5, 1), (40.2, 0.5, 2), (40, 0.502, 2)), []),
    (detections((40.09, 0.5009, 2)), [(2, 0)]),
])
def test_match_detections(other, pairs):
    assert match_detections(FOUND, other) == pairs


@pytest.mark.parametrize('other, message', [
    (FOUND[:2], '2 of 3'), (FOUND[:0], '0 of 3'),
    (InstanceData.cat([FOUND, FOUND[:1]]), '3 of 4')])
def test_detections_of_one_model_only_disagree(other, message):
    compared(detected(FOUND), detected(FOUND))
    with pytest.raises(UserError, match=f'detections in .*: {message} agree'):
        compared(detected(FOUND), detected(other))
    with pytest.raises(UserError, match='lower its test_cfg.score_thr'):
        compared(detected(FOUND[:0]), detected(FOUND[:0]))


def test_masks():
    """The background, which is alike in any two masks, does not count."""
    a, b = (FOUND[:1].clone() for _ in range(2))
    a.masks = torch.zeros(1, 800, 1333, dtype=torch.bool)
    a.masks[:, 100:160, 100:160] = True
    compared(detected(a), detected(a))
    for columns in (60, 6):
        b.masks = a.masks.roll(columns, 2).numpy()
        with pytest.raises(UserError, match='intersection over union of mas'):
            compared(detected(a), detected(b))


def test_metrics_judge_lower_precisions():
    """Of detectors and segmentors: labels of single pixels may differ."""
    pair = [[Result({}, BaseDataElement(pred_sem_seg=PixelData(
        data=torch.full((1, 4, 4), value))))] for value in (1, 2)]
    with pytest.raises(UserError, match='pixels .* label: 0 of 16 agree'):
        compared(*pair)
    with pytest.raises(UserError, match='judged by AP or mIoU, and none was'):
        compared(*pair, precision='bf16')
    found = compared(*pair, precision='bf16',
                     metrics=lambda: dict(mIoU=(70.0, 69.5), aAcc=(90, 10)))
    assert ('mIoU', '70 before, 69.5 after') in found.rows()
    for values in ((70.0, 68.5), (70.0, math.nan)):
        with pytest.raises(UserError, match='bf16 lowers mIoU by'):
            compared(*pair, precision='bf16',
                     metrics=lambda values=values: dict(mIoU=values))
    with pytest.raises(UserError, match=r'bbox_mAP by 2\.00 points'):
        compared(*pair, precision='int8',
                 metrics=lambda: {'coco/bbox_mAP': (0.40, 0.38)})
