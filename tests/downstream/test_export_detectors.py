# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What the files of mmdet's detectors find is what mmdet finds."""
import runpy
import sys

import numpy as np
import pytest
import torch
from downstream import heads
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from PIL import Image
from tiny import ROOT, read

from mmvanilla.export import dense_detectors, export
from mmvanilla.export.exported import Exported
from mmvanilla.export.formats import write
from mmvanilla.export.network import make_network
from mmvanilla.utils.configs import read_config
from mmvanilla.utils.errors import UserError

SNIPPET = ROOT / 'docs' / 'en' / 'snippets' / 'detect_onnxruntime.py'
FORMATS = {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'pt2'}


@pytest.fixture(scope='module')
def exported(runs, tmp_path_factory):
    """A detector's config, run, file and report."""
    done = {}

    def get(name, suffix='.onnx'):
        key = name, suffix
        if key not in done:
            run = runs(name)
            cfg = read_config(str(run.merged_config))
            out = tmp_path_factory.mktemp('export') / f'model{suffix}'
            done[key] = run, out, export(
                cfg, run.checkpoint, out, FORMATS[suffix])
        return done[key]

    return get


def detections(out, shapes):
    """What the file finds in each held-out image, by hand."""
    infer = Exported(out)
    order = -1 if infer.metadata['channel_order'] == 'BGR' else 1
    for path in sorted((shapes / 'val').iterdir()):
        pixels = np.asarray(Image.open(path).convert('RGB'))[..., ::order]
        x = (pixels - infer.metadata['mean']) / infer.metadata['std']
        x = torch.from_numpy(x.astype(np.float32).transpose(2, 0, 1)[None])
        yield path, infer(x)


@pytest.mark.parametrize('name,suffix', [
    ('retinanet', '.onnx'), ('rtmdet', '.onnx'), ('mask-rcnn', '.onnx'),
    ('mask-rcnn', '.xml')])
def test_detects_as_the_toolbox_does(exported, shapes, name, suffix):
    run, out, report = exported(name, suffix)
    found = list(detections(out, shapes))
    inferencer = DetInferencer(
        model=str(run.merged_config), weights=str(run.merged), device='cpu',
        show_progress=False)
    predictions = inferencer([str(path) for path, _ in found],
                             return_datasamples=True,
                             batch_size=8)['predictions']
    total = matched = 0
    for (_, (boxes, scores, labels, *_)), sample in zip(found, predictions):
        expected = sample.pred_instances
        total += max(len(expected), len(boxes))
        for box, score, label in zip(expected.bboxes, expected.scores,
                                     expected.labels):
            matched += bool(((labels == label)
                             & ((boxes - box).abs().amax(1) < 0.1)
                             & ((scores - score).abs() < 1e-3)).any())
    assert total > len(found)
    assert matched >= 0.99 * total
    metrics = run.test()
    for key, (before, after) in report.verification.metrics.items():
        assert round(before, 3) == round(after, 3) == round(metrics[key], 3)
    assert ('coco/segm_mAP' in metrics) == (name == 'mask-rcnn')
    # By tools/test.py on the file, one image at a time.
    assert run.test(model=out) == pytest.approx(metrics, abs=2e-3)


def test_metadata(exported):
    _, out, _ = exported('mask-rcnn')
    assert Exported(out).metadata.items() >= dict(
        labels=['circle', 'square', 'triangle'], input_size=[128, 128],
        score_thr=0.05, max_per_img=20, mask_thr_binary=0.5,
        outputs=['boxes', 'scores', 'labels', 'masks']).items()


@pytest.mark.parametrize('name,suffix', [
    ('retinanet', '.onnx'), ('mask-rcnn', '.onnx'), ('mask-rcnn', '.xml')])
def test_nothing_found(exported, name, suffix):
    _, out, _ = exported(name, suffix)
    outputs = Exported(out)(torch.zeros(1, 3, 128, 128))
    assert [tuple(x.shape) for x in outputs] == [
        (0, 4), (0, ), (0, ), (0, 28, 28)][:len(outputs)]


@pytest.mark.parametrize('name', [
    'FCOS', 'ATSS', 'FreeAnchor', 'VarifocalNet'])
def test_other_heads(name, tmp_path):
    _, model, _, _ = heads.train_and_merge(name)
    network = make_network(model, 'model', torch.zeros(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    size = dict(img_shape=(64, 64), scale_factor=(1, 1))
    with torch.no_grad(), heads.scope(name):
        sample, = model.predict(x, [DetDataSample(metainfo=size)])
        expected = sample.pred_instances
        outputs = [network(x)]
        if name in ('FCOS', 'ATSS'):
            write(network, x, tmp_path / 'model.onnx', 'onnx')
            outputs.append(Exported(tmp_path / 'model.onnx')(x))
    assert len(expected) == 100
    for boxes, scores, labels in outputs:
        torch.testing.assert_close(
            scores, expected.scores, rtol=1e-4, atol=1e-6)
        assert sum(
            bool(((labels == label)
                  & ((boxes - box).abs().amax(1) < 0.1)).any())
            for box, label in zip(expected.bboxes, expected.labels)) >= 99


def test_faster_rcnn(runs, tmp_path):
    """A Mask R-CNN without its masks."""
    run = runs('mask-rcnn')
    cfg = read_config(str(run.merged_config))
    cfg.model.type = 'FasterRCNN'
    for part in ('mask_head', 'mask_roi_extractor'):
        cfg.model.roi_head.pop(part)
    cfg.val_evaluator.metric = 'bbox'
    weights = {k: v for k, v in read(run.merged)['state_dict'].items()
               if 'mask_head' not in k}
    torch.save(dict(state_dict=weights), tmp_path / 'model.pth')
    report = export(cfg, tmp_path / 'model.pth', tmp_path / 'model.onnx')
    assert report.metadata['outputs'] == ['boxes', 'scores', 'labels']


@pytest.mark.parametrize('suffix,precision', [
    ('.onnx', 'int8'), ('.xml', 'int8'), ('.onnx', 'fp16'), ('.xml', 'bf16')])
def test_lower_precision(runs, tmp_path, suffix, precision):
    run = runs('retinanet')
    report = export(
        read_config(str(run.merged_config)), run.merged,
        tmp_path / f'model{suffix}', FORMATS[suffix], precision,
        calibration_samples=64, max_drop=5)
    before, after = report.verification.metrics['coco/bbox_mAP']
    assert before > 0.5 and after > 0.45
    # int8 is lower: it does not agree with fp32 to a thousandth.
    total, same = report.verification.counts['detections in agreement']
    assert precision != 'int8' or same < 0.9 * total


@pytest.mark.parametrize('change,kwargs,message', [
    ({}, dict(dynamic_batch=True), 'leave out --dynamic-batch'),
    ({}, dict(format='pt2'), 'onnx or openvino, not to pt2'),
    ({'model.test_cfg.nms.type': 'soft_nms'}, {}, "type='nms'"),
    ({'model.test_cfg.score_thr': 0.9999}, {}, 'detects nothing'),
    ({}, dict(precision='int8', samples=8), 'use a larger --samples')])
def test_refusals(runs, tmp_path, change, kwargs, message):
    run = runs('retinanet')
    cfg = read_config(str(run.merged_config), change)
    out = tmp_path / f'model.{kwargs.get("format", "onnx")}'
    with pytest.raises(UserError, match=message):
        export(cfg, run.merged, out, **dict(dict(samples=8), **kwargs))
    assert not list(tmp_path.iterdir())


def test_other_predictions_are_refused(runs, tmp_path, monkeypatch):
    """A file whose boxes are half a pixel off is not kept."""
    decode = dense_detectors.decode
    monkeypatch.setattr(dense_detectors, 'decode',
                        lambda *args: decode(*args) + 0.5)
    run = runs('retinanet')
    with pytest.raises(UserError, match='detections in agreement'):
        export(read_config(str(run.merged_config)), run.merged,
               tmp_path / 'model.onnx', samples=8)
    assert not list(tmp_path.iterdir())


def test_head_of_another_kind():
    _, model, _, _ = heads.train_and_merge('GFL')
    with pytest.raises(UserError, match='GFLHead cannot be exported whole'):
        make_network(model, 'model', torch.zeros(1, 3, 64, 64))


def test_snippet(exported, shapes, tmp_path, monkeypatch, capsys):
    """It draws what the toolbox finds, and imports nothing of ours."""
    _, out, _ = exported('retinanet')
    picture = shapes / 'val' / '0000.png'
    monkeypatch.syspath_prepend(SNIPPET.parent)
    for package in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmvanilla'):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, 'argv', ['', *map(str, (
        out, picture, tmp_path / 'out.png'))])
    runpy.run_path(str(SNIPPET))
    monkeypatch.undo()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    boxes, scores, _ = next(detections(out, shapes))[1]
    boxes = boxes[scores > 0.3]
    assert len(printed) == len(boxes) > 0
    assert [[float(w) for w in words[2:]] for words in printed] == [
        pytest.approx(box.tolist(), abs=0.06) for box in boxes]
    drawn = np.asarray(Image.open(tmp_path / 'out.png'))
    x1, y1, x2, y2 = boxes[0].int().tolist()
    assert (drawn[y1, x1:x2] == (0, 255, 0)).all(1).mean() > 0.9
    assert printed[0][0] in ('circle', 'square', 'triangle')
