# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from photos import CLASSES, write_photos
from PIL import Image
from tiny import DIGITS, NARROW, ROOT

from mmvanilla.engine.own_images import use_image_folder
from mmvanilla.engine.predict import predict
from mmvanilla.utils.building import build_model
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Photos, and a grey and a coloured network of random weights."""
    folder = tmp_path_factory.mktemp('predict')
    write_photos(folder / 'photos', per_class=5)
    colour = Config.fromfile(
        ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py')
    grey = Config.fromfile(DIGITS)
    for name, cfg in dict(colour=colour, grey=grey).items():
        cfg.model.backbone.arch = NARROW
        cfg.model.head.in_channels = 8
        cfg.train_dataloader.batch_size = 4
        # The config knows of ten or a thousand classes, the checkpoint of 4.
        cfg.dump(folder / f'{name}.py')
        use_image_folder(cfg, str(folder / 'photos'))
        torch.manual_seed(0)
        model = build_model(cfg)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        torch.save(
            dict(state_dict=model.state_dict(),
                 meta=dict(dataset_meta=dict(classes=CLASSES))),
            folder / f'{name}.pth')
    return folder


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table.splitlines()[2:]]


def test_a_folder_in_colour(folder, tmp_path):
    out = tmp_path / 'drawn'
    found = rows(predict(str(folder / 'photos'), str(folder / 'colour.py'),
                         out=str(out), top=2))
    # 20 images with 2 classes each, and one that is none.
    assert len(found) == 41
    assert ['checks/broken.jpg', 'cannot be read', ''] in found
    names = [row[0] for row in found if row[0]]
    images = {p.relative_to(folder / 'photos').as_posix()
              for p in (folder / 'photos').rglob('*.*')}
    assert set(names) == images
    drawn = {p.relative_to(out).as_posix() for p in out.rglob('*.*')}
    assert drawn == images - {'checks/broken.jpg'}
    original = np.asarray(Image.open(folder / 'photos/dots/dots_000.jpg')
                          .convert('RGB')).astype(int)
    label = np.asarray(Image.open(out / 'dots/dots_000.jpg')).astype(int)
    assert label.shape == original.shape
    changed = (np.abs(label - original).max(-1) > 60).mean()
    assert 0.01 < changed < 0.9


def test_scores_are_those_of_the_network(folder):
    """Computed by hand, for an image of the size that the network takes."""
    path = folder / 'image.png'
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(pixels).save(path)
    cfg = Config.fromfile(folder / 'grey.py')
    cfg.model.head.num_classes = 4
    model = build_model(cfg)
    model.load_state_dict(
        torch.load(folder / 'grey.pth', weights_only=True)['state_dict'])
    with torch.no_grad():
        inputs = (torch.from_numpy(pixels)[None, None].float() - 77.9) / 95.9
        sample, = model(inputs, [DataSample()], mode='predict')
    for deploy in (False, True):
        found = rows(predict(str(path), str(folder / 'grey.py'),
                             str(folder / 'grey.pth'), deploy=deploy))
        assert [row[0] for row in found] == ['image.png', '', '', '']
        scores = {name: float(score) for _, name, score in found}
        assert list(scores) == sorted(scores, key=scores.get, reverse=True)
        expected = dict(zip(CLASSES, sample.pred_score.tolist()))
        assert scores == pytest.approx(expected, abs=2e-4)
    assert max(expected.values()) - min(expected.values()) > 0.01


def test_a_published_name(folder, tmp_path, monkeypatch):
    """Its weights are looked for in torch.hub's cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub/checkpoints/vanillanet_6.pth'
    file.parent.mkdir(parents=True)
    file.write_bytes(b'no weights')
    with pytest.raises(UserError, match=r'vanillanet_6\.pth'):
        predict(str(folder / 'photos'), 'vanillanet-6_8xb128_in1k')


@pytest.mark.parametrize('change, message', [
    (dict(images='nowhere'), 'no image or folder nowhere'),
    (dict(images='empty'), r'no images in empty: names must end in \.jpg'),
    (dict(images='photos/checks/broken.jpg'), r'cannot read .*broken\.jpg'),
    (dict(model='nowhere.py'), r'no config at nowhere\.py'),
    (dict(model='vanilanet-6_8xb128_in1k'),
     'did you mean vanillanet-6_8xb128_in1k'),
    (dict(model='alone.py', checkpoint=None),
     r'no checkpoint of alone\.py is known'),
    (dict(model='no_model.py'), 'no_model.py has no model, which prediction'),
    (dict(model='no_data.py'), 'no_data.py has no test_dataloader with a pip'),
    (dict(checkpoint='nowhere.pth'), r'nowhere\.pth'),
    (dict(checkpoint='grey.pth'), r'grey\.pth does not fit'),
    (dict(checkpoint='half.pth', deploy=True), 'lambda is 0.5'),
    (dict(out='photos'), 'is where the images are'),
    (dict(out='grey.pth'), 'is a file, and a folder is wanted'),
    (dict(top=0), '--top must be 1 or more'),
], ids=str)
def test_refusals(folder, monkeypatch, change, message):
    monkeypatch.chdir(folder)
    Path('empty').mkdir(exist_ok=True)
    Path('alone.py').write_text(Path('colour.py').read_text())
    for name, parts in dict(
            no_model=['model'],
            no_data=['test_dataloader', 'val_dataloader']).items():
        cfg = Config.fromfile('colour.py')
        for part in parts:
            cfg.pop(part)
        cfg.dump(f'{name}.py')
    half = torch.load('colour.pth', weights_only=True)
    for key in half['state_dict']:
        if re.search(r'\.lam$', key):
            half['state_dict'][key] = torch.tensor(0.5)
    torch.save(half, 'half.pth')
    args = dict(images='photos', model='colour.py', checkpoint='colour.pth')
    with pytest.raises(UserError, match=message):
        predict(**{**args, **change})
