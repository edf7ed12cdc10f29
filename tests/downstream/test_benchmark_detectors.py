# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Whole detectors and segmentors in tools/benchmark.py."""
import pytest
from downstream.runs import CONFIGS

from mmvanilla.benchmark import benchmark, forms
from mmvanilla.utils.errors import UserError

OURS = str(CONFIGS / 'retinanet_shapes.py')
QUICK = dict(repeats=1, warmup=0, threads=1, progress=False)


def test_detectors():
    result = benchmark([OURS, 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'],
                       ['train', 'plain', 'onnxruntime', 'openvino'],
                       size=(160, 192),
                       together=True,
                       **QUICK)
    assert [(m.model.split('_')[0], m.form) for m in result.measurements] == [
        ('retinanet', 'train'), ('retinanet', 'plain'),
        ('retinanet', 'onnxruntime'), ('retinanet', 'openvino'),
        ('rtmdet', 'plain'), ('rtmdet', 'onnxruntime'), ('rtmdet', 'openvino')
    ]
    train, plain, *_, rtmdet = result.measurements
    assert train.parameters > plain.parameters
    assert train.macs > plain.macs
    assert rtmdet.parameters == pytest.approx(4.89e6, rel=0.01)


def test_segmentor_and_two_stages():
    result = benchmark(
        [str(CONFIGS / f'{name}_shapes.py') for name in ('upernet',
                                                         'mask-rcnn')],
        ['plain', 'onnxruntime'],
        size=64,
        **QUICK)
    assert len(result.measurements) == 4


def test_other_detections_are_not_timed(monkeypatch):
    exported = forms._exported

    def shifted(*args):
        run = exported(*args)

        def call(x):
            boxes, *rest = run(x)
            return [boxes + 0.5, *rest]

        return call

    monkeypatch.setattr(forms, '_exported', shifted)
    with pytest.raises(UserError, match='0 of 40 detections are the same'):
        benchmark([OURS], ['plain', 'onnxruntime'], size=64, **QUICK)


def test_unknown_config():
    with pytest.raises(UserError, match='cannot read mmdet::no.py'):
        benchmark(['mmdet::no.py'], ['plain'], **QUICK)
