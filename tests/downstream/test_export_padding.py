# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Files for images that the pipeline, or the file itself, pads."""
import numpy as np
import pytest
import torch
from downstream.shapes import CLASSES, draw
from mmdet.apis import inference_detector, init_detector
from PIL import Image
from tiny import ROOT

from mmvanilla.engine.predict import predict
from mmvanilla.export import export
from mmvanilla.utils.configs import build_model, read_config

CONFIGS = ROOT / 'tests/downstream/configs'
PAD = dict(type='Pad', size=(192, 160), pad_val=dict(img=(114, 9, 114)))


def save(cfg, folder):
    """Write the config and random weights whose outputs differ."""
    torch.manual_seed(0)
    model = build_model(cfg)
    if hasattr(model, 'bbox_head'):
        model.bbox_head.retina_cls.weight.data.normal_(std=0.3)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=list(CLASSES)))), folder / 'net.pth')
    cfg.dump(folder / 'net.py')
    return [str(folder / f'net.{suffix}') for suffix in ('py', 'pth', 'onnx')]


def test_detects_in_images_that_the_pipeline_pads(tmp_path):
    cfg = read_config(str(CONFIGS / 'retinanet_shapes.py'))
    cfg.test_dataloader.dataset.pipeline.insert(2, PAD)
    config, checkpoint, file = save(cfg, tmp_path)
    export(cfg, checkpoint, file, samples=4)
    image = str(tmp_path / 'x.png')
    pixels, *_ = draw(np.random.default_rng(0), 96)
    Image.fromarray(pixels[:64, :, ::-1]).save(image)
    found = inference_detector(
        init_detector(config, checkpoint, device='cpu'), image).pred_instances
    rows = predict(image, file, top=3).splitlines()[2:]
    for row, box, score in zip(rows, found.bboxes, found.scores):
        corners, share = map(str.strip, row.strip('|').split('|')[:1:-1])
        assert float(share) == pytest.approx(score.item(), abs=1e-4)
        assert [float(x) for x in corners.split(',')] == pytest.approx(
            box.tolist(), abs=0.06)
    assert len(rows) == 3


def test_segments_images_that_the_file_pads(tmp_path):
    cfg = read_config(str(CONFIGS / 'upernet_shapes.py'))
    dataset = cfg.val_dataloader.dataset
    dataset.data_root = str(tmp_path)
    rng = np.random.default_rng(0)
    for name, folder in dataset.data_prefix.items():
        (tmp_path / folder).mkdir()
        for i, (h, w) in enumerate([(96, 128), (128, 96)]):
            pixels = rng.integers(0, 4, (h, w, 3), np.uint8) * (
                60 if name == 'img_path' else 1)
            Image.fromarray(pixels if name == 'img_path' else pixels[..., 0]
                            ).save(tmp_path / folder / f'{i}.png')
    _, checkpoint, file = save(cfg, tmp_path)
    report = export(cfg, checkpoint, file)
    found = report.verification
    assert report.metadata['input_size'] == [128, 128]
    assert found.max_rel < 1e-5
    assert len(found.samples.batches) == 2
