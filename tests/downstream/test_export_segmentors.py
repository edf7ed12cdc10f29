# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The label maps of exported segmentors are mmseg's."""
import numpy as np
import pytest
import torch
from downstream import heads
from PIL import Image

from mmvanilla.export import export
from mmvanilla.export.exported import Exported
from mmvanilla.export.formats import write
from mmvanilla.export.network import make_network
from mmvanilla.utils.configs import read_config
from mmvanilla.utils.errors import UserError


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_segments_as_the_toolbox_does(runs, shapes, tmp_path, format):
    run = runs('upernet')
    cfg = read_config(str(run.merged_config))
    out = tmp_path / ('model.onnx' if format == 'onnx' else 'model.xml')
    report = export(cfg, run.checkpoint, out, format, dynamic_batch=True)
    metrics = run.test()
    for key, (before, after) in report.verification.metrics.items():
        assert round(before, 3) == round(after, 3) == round(metrics[key], 3)
    # By tools/test.py on the file, in batches.
    assert run.test(model=out) == pytest.approx(metrics, abs=0.02)

    # Any number of images, prepared as the metadata say.
    infer = Exported(out)
    order = -1 if infer.metadata['channel_order'] == 'BGR' else 1
    paths = sorted((shapes / 'val').iterdir())
    pixels = np.stack([np.asarray(Image.open(path).convert('RGB'), np.float32)
                       for path in paths[:12]])[..., ::order]
    x = (pixels - infer.metadata['mean']) / infer.metadata['std']
    x = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)
    logits, labels = infer(x)
    assert torch.equal(logits.argmax(1), labels)
    truth = np.stack([np.asarray(Image.open(shapes / 'val_masks' / path.name))
                      for path in paths[:12]])
    # 0 is to be ignored; a wrong order of the images finds no objects.
    assert (truth - 1 == labels.numpy())[truth > 1].mean() > 0.3


@pytest.mark.parametrize('mode,message', [
    ('whole', '--dynamic-size'), ('slide', "test_cfg.mode is 'slide'")])
def test_refusals(runs, tmp_path, mode, message):
    run = runs('upernet')
    cfg = read_config(str(run.merged_config), {'model.test_cfg.mode': mode})
    with pytest.raises(UserError, match=message):
        export(cfg, run.merged, tmp_path / 'model.onnx', samples=8,
               dynamic_size=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['FCN', 'OCRNet', 'SegFormer'])
def test_other_heads(name, tmp_path):
    _, model, _, _ = heads.train_and_merge(name)
    network = make_network(model, 'model', torch.zeros(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    write(network, x, tmp_path / 'model.onnx', 'onnx')
    with torch.no_grad(), heads.scope(name):
        sample, = model.predict(x)
    logits, labels = Exported(tmp_path / 'model.onnx')(x)
    torch.testing.assert_close(
        logits[0], sample.seg_logits.data, rtol=1e-4, atol=1e-5)
    assert (labels == sample.pred_sem_seg.data).float().mean() > 0.999
