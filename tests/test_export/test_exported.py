# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""An exported file where a checkpoint stands: tests, predictions, snippets."""
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from narrow import needs, randomize
from photos import CLASSES, photo
from PIL import Image
from tiny import NARROW, ROOT, call_tool, refused, tiny_cfg

from mmvanilla.checkpoints import load_checkpoint
from mmvanilla.engine.own_data import set_num_classes
from mmvanilla.engine.predict import predict
from mmvanilla.export import export, read_metadata
from mmvanilla.export.exported import Exported, prepare
from mmvanilla.export.formats import FORMATS
from mmvanilla.reparam.samples import find_samples
from mmvanilla.utils.configs import build_model, scope_of
from mmvanilla.utils.errors import UserError

SNIPPETS = ROOT / 'docs' / 'en' / 'snippets'


@torch.no_grad()
def save(cfg, folder, inputs, classes, **options):
    """Write a config, random weights that tell inputs apart, and a file."""
    cfg.model.backbone.deploy = cfg.model.head.deploy = True
    model, name = randomize(build_model(cfg)), str(folder / 'net')
    x = torch.cat([prepare(model, batch)[0] for batch in inputs])
    logits = model(x)
    bias, weight = (model.head.classifier.bias, model.head.classifier.weight)
    weight /= logits.std(0)[:, None, None, None]
    bias.copy_((bias - logits.mean(0)) / logits.std(0))
    cfg.dump(f'{name}.py')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=classes))), f'{name}.pth')
    export(cfg, f'{name}.pth', f'{name}.onnx', samples=8, **options)
    return folder


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A narrow classifier of digits: net.py, net.pth and net.onnx."""
    needs(*FORMATS['onnx'].packages)
    folder = tmp_path_factory.mktemp('digits')
    cfg = tiny_cfg(folder)
    return save(cfg, folder, find_samples(cfg, 32).batches,
                tuple('0123456789'), dynamic_batch=True)


@pytest.fixture
def tool(digits, monkeypatch, capfd):
    """What tools/test.py prints and measures for the digits' network."""

    def run(*args):
        out = digits / 'metrics.json'
        printed = call_tool(
            monkeypatch, capfd, 'test.py', digits / 'net.py', *args,
            '--out', out, '--out-item', 'metrics', cwd=digits)
        return printed, json.loads(out.read_text())

    return run


@pytest.mark.parametrize('format', [
    'onnx', 'openvino', 'pt2', pytest.param('aoti', marks=pytest.mark.slow)])
def test_a_file_has_the_metrics_of_its_checkpoint(digits, tool, format):
    needs(*FORMATS[format].packages)
    path, batches = digits / 'net.onnx', '[2/2]'
    if format != 'onnx':  # which takes one image at a time
        path, batches = digits / f'one{FORMATS[format].suffix}', '[32/32]'
        export(Config.fromfile(digits / 'net.py'), digits / 'net.pth', path,
               format, samples=8, force=True)
    _, expected = tool(digits / 'net.pth')
    printed, metrics = tool(path, '--threads', '1', '--show-dir', 'drawn')
    assert 0 < expected['accuracy/top1'] < 100
    assert metrics == pytest.approx(expected)
    assert f'{format}, fp32, in ' in printed and batches in printed
    assert len(list(digits.glob('drawn/*'))) == 32


def changed(digits, tmp_path, **metadata):
    """The digits' file with other metadata."""
    import onnx
    model = onnx.load(digits / 'net.onnx')
    metadata = {**read_metadata(digits / 'net.onnx'), **metadata}
    onnx.helper.set_model_props(model, {
        key: json.dumps(x) for key, x in metadata.items() if x != ''})
    onnx.save(model, tmp_path / 'changed.onnx')
    return tmp_path / 'changed.onnx'


def test_another_pipeline_than_the_exported_one(digits, tool, tmp_path):
    *steps, last = read_metadata(digits / 'net.onnx')['preprocess']
    for scale, named in ((last['scale'], 0), ([9, 9], 1)):
        printed, _ = tool(changed(digits, tmp_path, preprocess=[
            *steps, dict(last, scale=scale)]))
        assert printed.count('another test pipeline') == named


@pytest.mark.parametrize('metadata, options, sentence', [
    ({}, ['--deploy'], '--deploy is for a checkpoint'),
    ({}, ['--tta'], '--tta is for a checkpoint'),
    ({}, ['--threads', '99999'], 'a number from 1 to'),
    ({}, ['--cfg-options', 'model.head.topk=1'], 'changes nothing'),
    ({}, ['--cfg-options', 'test_dataloader.dataset.pipeline.0.scale=40'],
     'shape [-1, 1, 32, 32], where -1 is any number, but got [16, 1, 40, 40]'),
    (dict(task='detection', mean=[1.0]), [], 'is for detection, but'),
    (dict(mean=[1.0]), [], 'with mean [1.0], but the data preprocessor has'),
    (dict(labels=['a', 'b']), [], 'was trained for a, b, but'),
    (dict(task='features'), [], 'is for features, with metadata of version 2'),
    (dict(labels=''), [], 'fails: KeyError'),
    (dict(mean=1.0), [], 'must be a file that mmvanilla exported as'),
    (dict(format_version=''), [], 'with metadata of version 1, but must be'),
    (dict(format_version=3), [], 'with metadata of version 3, but must be')],
    ids=str)
def test_what_does_not_fit_a_file(
        digits, tmp_path, monkeypatch, capfd, metadata, options, sentence):
    path = changed(digits, tmp_path, **metadata)
    assert sentence in refused(
        monkeypatch, capfd, 'test.py', digits / 'net.py', path, *options,
        cwd=tmp_path)


def test_a_file_that_others_have_changed(digits, tool, tmp_path):
    """Texts of other tools are left alone; NaN is no prediction."""
    import onnx
    model, path = onnx.load(digits / 'net.onnx'), tmp_path / 'NET.ONNX'
    model.metadata_props.add(key='onnx.infer', value='another tool')
    onnx.save(model, path)
    assert tool(path)[1] == tool(digits / 'net.pth')[1]
    weight = next(x for x in model.graph.initializer if len(x.dims) == 4)
    weight.raw_data = np.full(weight.dims, np.nan, np.float32).tobytes()
    onnx.save(model, path)
    photo('dots', np.random.default_rng(0)).save(tmp_path / 'x.png')
    with pytest.raises(UserError, match='NET.ONNX gives numbers that are not'):
        predict(str(tmp_path / 'x.png'), str(path))
    with pytest.raises(UserError, match='is an exported file, not a checkpoi'):
        load_checkpoint(path)


def test_images_that_do_not_fit_a_file(digits, tmp_path, capfd):
    """One of a folder does not stop the others."""
    load, *_ = read_metadata(digits / 'net.onnx')['preprocess']
    path, images = changed(digits, tmp_path, preprocess=[load]), tmp_path / 'x'
    images.mkdir()
    for name, size in (('a.png', (40, 32)), ('b.png', (32, 32))):
        Image.new('L', size).save(images / name)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]]
            for line in predict(str(images), str(path), top=1).splitlines()]
    assert rows[2] == ['a.png', 'does not fit', '']
    assert rows[3][0] == 'b.png' and rows[3][1] in '0123456789'
    assert 'a.png does not fit: ' in capfd.readouterr().err
    with pytest.raises(UserError, match='a.png does not fit: .* pad images'):
        predict(str(images / 'a.png'), str(path))


@pytest.mark.parametrize('metadata, options, sentence', [
    ({}, dict(deploy=True), 'needs no checkpoint and is merged'),
    (dict(preprocess=None), {}, 'does not tell its preprocessing'),
    (dict(task='features'), {}, 'is for features, with metadata of version 2'),
    (dict(format_version=''), {}, 'with metadata of version 1, but must be')],
    ids=str)
def test_what_cannot_be_predicted_with(
        digits, tmp_path, metadata, options, sentence):
    path = changed(digits, tmp_path, **metadata)
    photo('dots', np.random.default_rng(0)).save(tmp_path / 'x.png')
    with pytest.raises(UserError, match=sentence):
        predict(str(tmp_path / 'x.png'), str(path), **options)


@pytest.mark.parametrize('backend, size, tol', [
    ('pillow', 224, 1e-4), ('cv2', 64, 1e-2)])
def test_photos_have_one_label(
        tmp_path, monkeypatch, capsys, backend, size, tol):
    """By the checkpoint, by the file, and by the docs' code."""
    needs(*FORMATS['onnx'].packages)
    images, rng = tmp_path / 'photos', np.random.default_rng(0)
    images.mkdir()
    for i in range(80):
        image, orientation = photo(CLASSES[i % 4], rng), i % 2 * (i // 2 % 8)
        exif = image.getexif()
        exif[0x112] = orientation + 1
        if i == 78:  # one pixel wide
            image = image.crop((0, 0, 1, 40))
        elif i == 79:  # of 16 bits
            image = Image.fromarray(np.uint16(image.convert('L')) * 257)
        image.save(images / f'{i:02}.{("jpg", "png")[i // 2 % 2]}', exif=exif)
    names = sorted(map(str, images.iterdir()))
    cfg = Config.fromfile(
        ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py')
    cfg.model.backbone.arch, cfg.model.head.in_channels = NARROW, 8
    set_num_classes(cfg, 4)
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[1].update(scale=size * 8 // 7, backend=backend)
    if backend == 'cv2':
        pipeline[1].interpolation = 'bilinear'
    pipeline[2].crop_size = size
    with scope_of(cfg):
        compose = Compose(pipeline)
        batches = [{key: [x] for key, x in compose(dict(
            img_path=name)).items()} for name in names]
    save(cfg, tmp_path, batches, CLASSES)
    model, file = build_model(cfg), Exported(tmp_path / 'net.onnx')
    wanted = [file(prepare(model, batch)[0])[0] for batch in batches]
    found = [predict(str(images), *map(str, args), top=1).splitlines()[2:]
             for args in ([tmp_path / 'net.py', tmp_path / 'net.pth'],
                          [tmp_path / 'net.onnx'])]
    monkeypatch.syspath_prepend(SNIPPETS)
    prepared = runpy.run_path(str(SNIPPETS / 'prepare.py'))['prepare']
    for name, logits in zip(names, wanted):
        x, _, _ = prepared(name, file.metadata)
        torch.testing.assert_close(
            file(torch.from_numpy(x))[0], logits, rtol=0, atol=tol)
    capsys.readouterr()
    for package in ('torch', 'mmengine', 'mmcv', 'cv2', 'mmvanilla'):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, 'argv', ['', str(tmp_path / 'net.onnx'), *names])
    runpy.run_path(str(SNIPPETS / 'classify_onnxruntime.py'))
    monkeypatch.undo()
    found.append(capsys.readouterr().out.splitlines())
    checkpoint, exported, snippet = (
        [line.replace('|', ' ').split()[1] for line in lines]
        for lines in found)
    expected = [CLASSES[logits.argmax()] for logits in wanted]
    assert len({*expected}) == 4 and len(expected) == 80
    assert expected == checkpoint == exported == snippet


@pytest.mark.parametrize('format', ['onnx', 'openvino', 'pt2'])
@pytest.mark.parametrize('zipped', [False, True])
def test_other_and_damaged_files(format, zipped, tmp_path, capfd, caplog):
    """One sentence, and nothing of the runtime beside it."""
    needs(*FORMATS[format].packages)
    path = tmp_path / f'net{FORMATS[format].suffix}'
    path.with_suffix('.bin').write_bytes(b'')
    torch.save(dict(state_dict={}), path)
    if not zipped:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match='must be a file that mmvanilla exp'):
        read_metadata(path)
    # OpenVINO's parsers print from C++.
    assert format == 'openvino' or not (
        ''.join(capfd.readouterr()) or caplog.records)
