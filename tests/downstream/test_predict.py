# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predictions of a detector and a segmentor of random weights."""
from pathlib import Path

import numpy as np
import pytest
import torch
from downstream.shapes import CLASSES, draw
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tiny import ROOT

from mmvanilla.engine.predict import predict
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError

CONFIGS = ROOT / 'tests' / 'downstream' / 'configs'
NAMES = {'retinanet': CLASSES, 'upernet': ('background', *CLASSES)}


@pytest.fixture(scope='module', params=NAMES)
def network(request, tmp_path_factory):
    """A config and a checkpoint, whose classes are named in its meta."""
    name = request.param
    config = CONFIGS / f'{name}_shapes.py'
    torch.manual_seed(0)
    model = build_model(read_config(str(config)))
    if name == 'retinanet':  # scores that differ
        torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.3)
    checkpoint = tmp_path_factory.mktemp(name) / 'random.pth'
    classes = list(NAMES[name])
    torch.save(
        dict(state_dict=model.state_dict(),
             meta=dict(dataset_meta=dict(
                 classes=classes, palette=[[9 * i] * 3 for i in range(4)]))),
        checkpoint)
    return name, config, checkpoint


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """Two images of the same name in different folders."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        (folder / name).mkdir()
        picture, *_ = draw(rng, 96)
        Image.fromarray(picture[..., ::-1]).save(folder / name / 'x.png')
    return folder


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table.splitlines()[2:]]


def expected(name: str, config: Path, checkpoint: Path, image: Path) -> list:
    """The rows of one image, by the toolbox's function for one image."""
    with DefaultScope.overwrite_default_scope(
            'mmdet' if name == 'retinanet' else 'mmseg'):
        if name == 'retinanet':
            from mmdet.apis import inference_detector, init_detector
            model = init_detector(str(config), str(checkpoint), device='cpu')
            found = inference_detector(model, str(image)).pred_instances
            best = found.scores.argsort(descending=True)[:3]
            return [(CLASSES[found.labels[i]], f'{found.scores[i]:.4f}',
                     ', '.join(f'{x:.1f}' for x in found.bboxes[i].tolist()))
                    for i in best]
        from mmseg.apis import inference_model, init_model
        model = init_model(str(config), str(checkpoint), device='cpu')
        labels = inference_model(model, str(image)).pred_sem_seg.data
        shares = labels.flatten().bincount(minlength=4) / labels.numel()
        best = shares.argsort(descending=True)[:3]
        return [(NAMES[name][i], f'{100 * shares[i]:.1f} %')
                for i in best if shares[i] > 0]


def test_predicts_as_the_toolbox_does(network, images, tmp_path):
    name, config, checkpoint = network
    cfg = Config.fromfile(config)
    cfg.pop('visualizer')  # the toolbox's default is used
    cfg.dump(tmp_path / 'config.py')
    found = rows(predict(str(images), str(tmp_path / 'config.py'),
                         str(checkpoint), str(tmp_path), name == 'upernet',
                         top=3))
    wanted = []
    for folder in ('a', 'b'):
        part = expected(name, config, checkpoint, images / folder / 'x.png')
        wanted += [[f'{folder}/x.png' if i == 0 else '', *row]
                   for i, row in enumerate(part)]
        drawn = np.asarray(Image.open(tmp_path / folder / 'vis' / 'x.png'))
        assert (np.asarray(Image.open(images / folder / 'x.png'))
                != drawn).any()
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    for a, b in zip(found, wanted):
        a, b = ([float(x) for cell in row[2:]
                 for x in cell.removesuffix('%').split(',')] for row in (a, b))
        assert a == pytest.approx(b, abs=0.11, rel=1e-3)


def test_weights_of_another_network(network, images):
    name, config, checkpoint = network
    other = next(x for x in NAMES if x != name)
    with pytest.raises(UserError, match='does not fit'):
        predict(str(images), str(CONFIGS / f'{other}_shapes.py'),
                str(checkpoint))
