# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predictions of a detector and a segmentor of random weights."""
import numpy as np
import pytest
import torch
from downstream.shapes import CLASSES, draw
from mmengine.registry import DefaultScope
from PIL import Image
from tiny import ROOT

from mmvanilla.engine.predict import predict
from mmvanilla.export import export
from mmvanilla.utils.configs import build_model, read_config


def expected_boxes(config, checkpoint, image, classes) -> list:
    from mmdet.apis import inference_detector, init_detector
    model = init_detector(config, checkpoint, device='cpu')
    found = inference_detector(model, image).pred_instances
    return [(classes[found.labels[i]], f'{found.scores[i]:.4f}',
             ', '.join(f'{x:.1f}' for x in found.bboxes[i].tolist()))
            for i in found.scores.argsort(descending=True)[:3]]


def expected_shares(config, checkpoint, image, classes) -> list:
    from mmseg.apis import inference_model, init_model
    model = init_model(config, checkpoint, device='cpu')
    labels = inference_model(model, image).pred_sem_seg.data
    shares = labels.flatten().bincount(minlength=4) / labels.numel()
    return [(classes[i], f'{100 * shares[i]:.1f} %')
            for i in shares.argsort(descending=True)[:3] if shares[i] > 0]


@pytest.mark.parametrize('name, scope, classes, expected', [
    ('retinanet', 'mmdet', CLASSES, expected_boxes),
    ('upernet', 'mmseg', ('background', *CLASSES), expected_shares)])
def test_predicts_as_the_toolbox_does(
        name, scope, classes, expected, tmp_path):
    config = str(ROOT / f'tests/downstream/configs/{name}_shapes.py')
    torch.manual_seed(0)
    model = build_model(read_config(config))
    if name == 'retinanet':  # scores that differ
        model.bbox_head.retina_cls.weight.data.normal_(std=0.3)
    checkpoint = str(tmp_path / 'random.pth')
    meta = dict(classes=list(classes), palette=[[9 * i] * 3 for i in range(4)])
    torch.save(dict(state_dict=model.state_dict(),
                    meta=dict(dataset_meta=meta)), checkpoint)
    wanted, rng = [], np.random.default_rng(0)
    for folder in ('a', 'b'):
        image = tmp_path / f'images/{folder}/x.png'
        image.parent.mkdir(parents=True)
        Image.fromarray(draw(rng, 96)[0][..., ::-1]).save(image)
        with DefaultScope.overwrite_default_scope(scope):
            rows = expected(config, checkpoint, str(image), classes)
        wanted += [[f'{folder}/x.png' if i == 0 else '', *row]
                   for i, row in enumerate(rows)]
    # An exported file needs no config, and its pictures are the same.
    file, drawings = str(tmp_path / 'net.onnx'), []
    export(read_config(config), checkpoint, file, samples=4)
    for out, args in (('checkpoint', (config, checkpoint)),
                      ('file', (file, None))):
        table = predict(
            str(tmp_path / 'images'), *args, str(tmp_path / out),
            name == 'upernet' and out == 'checkpoint', top=3)
        found = [[cell.strip() for cell in line.strip('|').split('|')]
                 for line in table.splitlines()[2:]]
        assert [row[:2] for row in found] == [row[:2] for row in wanted]
        for a, b in zip(found, wanted):
            a, b = ([float(x) for cell in row[2:] for x in
                     cell.removesuffix('%').split(',')] for row in (a, b))
            assert a == pytest.approx(b, abs=0.11, rel=1e-3)
        for folder in ('a', 'b'):
            given, drawn = (np.asarray(Image.open(tmp_path / path)) for path in
                            (f'images/{folder}/x.png',
                             f'{out}/{folder}/vis/x.png'))
            assert given.shape == drawn.shape and (given != drawn).any()
            drawings.append(drawn)
    for a, b in zip(drawings[:2], drawings[2:]):
        assert (a != b).any(-1).mean() < 0.02
