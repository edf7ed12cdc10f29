# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import runpy
import sys

import numpy as np
import pytest
import torch
from tiny import ROOT, read

NEEDS = 'the README tells how to install the toolboxes'
pytest.importorskip('mmdet', reason=f'no mmdet: {NEEDS}')
pytest.importorskip(
    'mmcv.ops',
    reason=f'mmcv has no compiled ops: {NEEDS}',
    exc_type=ImportError)
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')

from downstream import heads  # noqa: E402
from mmdet.apis import DetInferencer  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from PIL import Image  # noqa: E402

from mmvanilla.export import export, read_metadata  # noqa: E402
from mmvanilla.export.exported import Exported  # noqa: E402
from mmvanilla.export.formats import write  # noqa: E402
from mmvanilla.export.network import make_network  # noqa: E402
from mmvanilla.utils.configs import read_config  # noqa: E402
from mmvanilla.utils.errors import UserError  # noqa: E402

SNIPPET = ROOT / 'docs' / 'en' / 'snippets' / 'detect_onnxruntime.py'
MEAN, STD = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.fixture(scope='session')
def exported(runs, tmp_path_factory):
    """A detector's config, run, file and report."""
    done = {}

    def get(name, format='onnx', **kwargs):
        key = name, format
        if key not in done:
            run = runs(name)
            cfg = read_config(str(run.merged_config))
            out = tmp_path_factory.mktemp('export') / (
                'model.onnx' if format == 'onnx' else 'model.xml')
            done[key] = run, out, export(cfg, run.checkpoint, out, format)
        return done[key]

    return get


def detections(out, shapes):
    """What the file finds in each held-out image, by hand."""
    infer = Exported(out)
    metadata = infer.metadata
    mean, std = np.array(metadata['mean']), np.array(metadata['std'])
    for path in sorted((shapes / 'val').iterdir()):
        pixels = np.asarray(Image.open(path).convert('RGB'), np.float32)
        if metadata['channel_order'] == 'BGR':
            pixels = pixels[:, :, ::-1]
        x = ((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1)
        yield path, infer(torch.from_numpy(x[None]))


@pytest.mark.parametrize('name,format', [('retinanet', 'onnx'),
                                         ('retinanet', 'openvino'),
                                         ('rtmdet', 'onnx'),
                                         ('mask-rcnn', 'onnx'),
                                         ('mask-rcnn', 'openvino')])
def test_detects_as_the_toolbox_does(exported, shapes, name, format):
    run, out, report = exported(name, format)
    found = list(detections(out, shapes))
    inferencer = DetInferencer(
        model=str(run.merged_config), weights=str(run.merged), device='cpu',
        show_progress=False)
    predictions = inferencer([str(path) for path, _ in found],
                             return_datasamples=True,
                             batch_size=8)['predictions']
    total = matched = 0
    for (_, (boxes, scores, labels, *_)), sample in zip(
            found, predictions, strict=True):
        expected = sample.pred_instances
        total += max(len(expected), len(boxes))
        for box, score, label in zip(expected.bboxes, expected.scores,
                                     expected.labels):
            matched += bool(((labels == label)
                             & ((boxes - box).abs().amax(1) < 0.1)
                             & ((scores - score).abs() < 1e-3)).any())
    assert total > len(found)
    assert matched >= 0.99 * total
    counts = report.verification.counts['detections in agreement']
    assert counts[1] >= 0.99 * counts[0] > 0

    metrics = run.test()
    for key, (before, after) in report.verification.metrics.items():
        assert round(before, 3) == round(after, 3) == round(metrics[key], 3)
    assert ('coco/segm_mAP' in metrics) == (name == 'mask-rcnn')


def test_metadata(exported):
    run, out, _ = exported('mask-rcnn')
    metadata = read_metadata(out)
    cfg = read_config(str(run.merged_config))
    assert metadata['labels'] == ['circle', 'square', 'triangle']
    assert metadata['mean'] == pytest.approx(MEAN, abs=1e-3)
    assert metadata['std'] == pytest.approx(STD, abs=1e-3)
    assert metadata['input_size'] == [128, 128]
    assert metadata['score_thr'] == cfg.model.test_cfg.rcnn.score_thr
    assert metadata['max_per_img'] == 20
    assert metadata['mask_thr_binary'] == 0.5
    assert metadata['outputs'] == ['boxes', 'scores', 'labels', 'masks']


@pytest.mark.parametrize('name', ['retinanet', 'mask-rcnn'])
@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_nothing_found(exported, name, format):
    _, out, _ = exported(name, format)
    outputs = Exported(out)(torch.zeros(1, 3, 128, 128))
    assert [tuple(x.shape) for x in outputs] == [
        (0, 4), (0, ), (0, ), (0, 28, 28)][:len(outputs)]


@pytest.mark.parametrize('name',
                         ['FCOS', 'ATSS', 'FreeAnchor', 'VarifocalNet'])
def test_other_heads(name, tmp_path):
    _, model, _, _ = heads.train_and_merge(name)
    network = make_network(model, 'model', torch.zeros(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), scale_factor=(1, 1)))
    with torch.no_grad(), heads.scope(name):
        expected = model.predict(x, [sample], rescale=False)[0].pred_instances
        outputs = [network(x)]
        if name in ('FCOS', 'ATSS'):
            write(network, x, tmp_path / 'model.onnx', 'onnx')
            outputs.append(Exported(tmp_path / 'model.onnx')(x))
    assert len(expected) == 100
    for boxes, scores, labels in outputs:
        torch.testing.assert_close(
            scores, expected.scores, rtol=1e-4, atol=1e-6)
        same = [
            bool(((labels == label)
                  & ((boxes - box).abs().amax(1) < 0.1)).any())
            for box, label in zip(expected.bboxes, expected.labels)
        ]
        assert sum(same) >= 99


def test_faster_rcnn(runs, tmp_path):
    """A Mask R-CNN without its masks."""
    run = runs('mask-rcnn')
    cfg = read_config(str(run.merged_config))
    cfg.model.type = 'FasterRCNN'
    for part in ('mask_head', 'mask_roi_extractor'):
        cfg.model.roi_head.pop(part)
    cfg.val_evaluator.metric = 'bbox'
    weights = {key: value
               for key, value in read(run.merged)['state_dict'].items()
               if 'mask_head' not in key}
    torch.save(dict(state_dict=weights), tmp_path / 'model.pth')
    report = export(cfg, tmp_path / 'model.pth', tmp_path / 'model.onnx')
    assert report.metadata['outputs'] == ['boxes', 'scores', 'labels']
    counts = report.verification.counts['detections in agreement']
    assert counts[1] >= 0.99 * counts[0] > 0


@pytest.mark.parametrize('format,precision', [('onnx', 'int8'),
                                              ('openvino', 'int8'),
                                              ('openvino', 'bf16')])
def test_lower_precision(runs, tmp_path, format, precision):
    run = runs('retinanet')
    out = tmp_path / ('model.onnx' if format == 'onnx' else 'model.xml')
    report = export(
        read_config(str(run.merged_config)), run.merged, out, format,
        precision, calibration_samples=64, max_drop=2)
    before, after = report.verification.metrics['coco/bbox_mAP']
    assert before - after <= 0.02
    # Its precision is lower: it does not agree with fp32 to a thousandth.
    total, same = report.verification.counts['detections in agreement']
    assert same < 0.9 * total


@pytest.mark.parametrize('change,kwargs,message', [
    ({}, dict(dynamic_batch=True), 'leave out --dynamic-batch'),
    ({}, dict(format='pt2'), 'onnx or openvino, not to pt2'),
    ({'model.test_cfg.nms.type': 'soft_nms'}, {}, "type='nms'"),
    ({'model.test_cfg.score_thr': 0.9999}, {}, 'detects nothing'),
    ({}, dict(precision='int8', samples=8), 'use a larger --samples'),
])
def test_refusals(runs, tmp_path, change, kwargs, message):
    run = runs('retinanet')
    cfg = read_config(str(run.merged_config), change)
    suffix = '.pt2' if kwargs.get('format') == 'pt2' else '.onnx'
    kwargs = dict(dict(samples=8), **kwargs)
    with pytest.raises(UserError, match=message):
        export(cfg, run.merged, tmp_path / f'model{suffix}', **kwargs)
    assert not list(tmp_path.iterdir())


def test_other_predictions_are_refused(runs, tmp_path, monkeypatch):
    """A file whose boxes are half a pixel off is not kept."""
    from mmvanilla.export import dense_detectors
    decode = dense_detectors.decode
    monkeypatch.setattr(dense_detectors, 'decode',
                        lambda *args: decode(*args) + 0.5)
    run = runs('retinanet')
    with pytest.raises(UserError, match='detections in agreement'):
        export(
            read_config(str(run.merged_config)), run.merged,
            tmp_path / 'model.onnx', samples=8)
    assert not list(tmp_path.iterdir())


def test_head_of_another_kind():
    _, model, _, _ = heads.train_and_merge('GFL')
    with pytest.raises(UserError, match='GFLHead cannot be exported whole'):
        make_network(model, 'model', torch.zeros(1, 3, 64, 64))


def test_snippet(exported, shapes, tmp_path, monkeypatch, capsys):
    """It draws what the toolbox finds, and imports nothing of ours."""
    run, out, _ = exported('retinanet')
    picture = shapes / 'val' / '0000.png'
    for package in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmvanilla'):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        sys, 'argv', ['', str(out), str(picture), str(tmp_path / 'out.png')])
    runpy.run_path(str(SNIPPET))
    monkeypatch.undo()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = next(detections(out, shapes))[1]
    boxes = found[0][found[1] > 0.3]
    assert len(printed) == len(boxes) > 0
    for words, box in zip(printed, boxes):
        assert [float(w) for w in words[2:]] == pytest.approx(
            box.tolist(), abs=0.06)
    drawn = np.asarray(Image.open(tmp_path / 'out.png'))
    x1, y1, x2, y2 = boxes[0].int().tolist()
    assert (drawn[y1, x1:x2] == (0, 255, 0)).all(1).mean() > 0.9
    assert printed[0][0] in ('circle', 'square', 'triangle')
