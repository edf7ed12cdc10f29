# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.datasets import ImageNet
from mmpretrain.structures import DataSample
from photos import CLASSES, write_photos
from PIL import Image
from tiny import DIGITS, NARROW, ROOT

from mmvanilla.engine.own_data import set_num_classes
from mmvanilla.engine.predict import main, predict
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Photos, and a grey and a colored network of random weights."""
    folder = tmp_path_factory.mktemp('predict')
    write_photos(folder / 'photos', per_class=3)
    (folder / 'empty').mkdir()
    for name, path in dict(
            grey=DIGITS,
            color=ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py'
    ).items():
        cfg = Config.fromfile(path)
        cfg.model.backbone.arch = NARROW
        cfg.model.head.in_channels = 8
        # The config knows of ten or a thousand classes, the checkpoint of 4.
        cfg.dump(folder / f'{name}.py')
        other = Config.fromfile(folder / f'{name}.py')
        set_num_classes(other, 4)
        torch.manual_seed(0)
        model = build_model(other)
        for parameter in model.parameters():
            # So that scores depend on the image.
            torch.nn.init.normal_(
                parameter, std=0.5 if parameter.dim() < 2 else 1)
        content = dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=dict(classes=CLASSES)))
        torch.save(content, folder / f'{name}.pth')
    for key, value in content['state_dict'].items():
        if key.endswith('.lam'):
            value.fill_(0.5)
    torch.save(content, folder / 'half.pth')
    cfg.dump(folder / 'alone.py')
    for name, change in dict(
            no_type=dict(model=dict(type='Nowhere')),
            no_data=dict(test_dataloader=None, val_dataloader=None),
            no_model=dict(model=None)).items():
        cfg.merge_from_dict(change)
        cfg.dump(folder / f'{name}.py')
        cfg = Config.fromfile(folder / 'alone.py')
    return folder


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table.splitlines()[2:]]


def test_a_folder_in_color(folder, tmp_path):
    out = tmp_path / 'drawn'
    Image.open(folder / 'photos/dots/dots_000.jpg').save(
        folder / 'photos/dots/x.tif')
    found = rows(predict(str(folder / 'photos'), str(folder / 'color.py'),
                         out=str(out), top=2))
    images = {p.relative_to(folder / 'photos').as_posix()
              for p in (folder / 'photos').rglob('*.*')}
    # 13 images with 2 classes each, and one file that is no image.
    assert len(found) == 27
    assert ['checks/broken.jpg', 'cannot be read', ''] in found
    assert {row[0] for row in found} - {''} == images
    assert {p.relative_to(out).as_posix() for p in out.rglob('*.*')} == (
        images - {'checks/broken.jpg', 'dots/x.tif'}) | {'dots/x.tif.png'}
    original = np.asarray(Image.open(folder / 'photos/dots/dots_000.jpg')
                          .convert('RGB')).astype(int)
    for name in ('dots_000.jpg', 'x.tif.png'):
        label = np.asarray(Image.open(out / 'dots' / name)).astype(int)
        changed = (np.abs(label - original).max(-1) > 60).mean()
        assert 0.01 < changed < 0.9


@pytest.mark.parametrize('orientation', [1, 6])
def test_scores_are_those_of_the_network(
        folder, tmp_path, monkeypatch, capsys, orientation):
    """Computed by hand, for an image of the size that the network needs."""
    lines = np.random.default_rng(0).integers(0, 256, (32, 1), np.uint8)
    pixels = lines.repeat(32, axis=1)
    exif = Image.Exif()
    exif[0x112] = orientation  # 6: turn by 90 degrees to see it upright
    Image.fromarray(np.rot90(pixels, orientation == 6)).save(
        tmp_path / 'image.png', exif=exif)
    cfg = Config.fromfile(folder / 'grey.py')
    set_num_classes(cfg, 4)
    model = build_model(cfg)
    model.load_state_dict(
        torch.load(folder / 'grey.pth', weights_only=True)['state_dict'])
    expected, turned = [
        model.predict(
            (torch.tensor(image.copy())[None, None].float() - 77.9) / 95.9,
            [DataSample()])[0].pred_score.tolist()
        for image in (pixels, np.rot90(pixels))
    ]
    assert np.abs(np.subtract(expected, turned)).max() > 0.05
    for option in ('--top=4', '--deploy'):
        monkeypatch.setattr(sys, 'argv', [
            'mmvanilla-predict', str(tmp_path / 'image.png'),
            str(folder / 'grey.py'), str(folder / 'grey.pth'), option])
        main()
        found = rows(capsys.readouterr().out)
        assert [row[0] for row in found] == ['image.png', '', '', '']
        scores = {name: float(score) for _, name, score in found}
        assert list(scores) == sorted(scores, key=scores.get, reverse=True)
        assert [scores[x] for x in CLASSES] == pytest.approx(
            expected, abs=2e-4)


def test_a_checkpoint_without_names_of_classes(folder, tmp_path):
    """They are those of the config's data set, here of ImageNet."""
    config = str(folder / 'color.py')
    torch.save(build_model(Config.fromfile(config)).state_dict(),
               tmp_path / 'x.pth')
    found = rows(predict(str(folder / 'photos/dots'), config,
                         str(tmp_path / 'x.pth'), top=1))
    assert {name for _, name, _ in found} < set(
        ImageNet.METAINFO['classes'])


def test_a_published_name(folder, tmp_path, monkeypatch):
    """Its weights are looked for in torch.hub's cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub/checkpoints/vanillanet_6.pth'
    file.parent.mkdir(parents=True)
    file.write_bytes(b'no weights')
    with pytest.raises(UserError, match=r'vanillanet_6'):
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
    (dict(model='no_type.py'), 'cannot build the model of no_type.py: KeyErr'),
    (dict(model='no_data.py'), 'no_data.py, which must be a config of mmpret'),
    (dict(checkpoint='nowhere.pth'), r'nowhere\.pth'),
    (dict(checkpoint='grey.pth'), r'grey\.pth does not fit'),
    (dict(checkpoint='half.pth', deploy=True), r'half\.pth: .*lambda'),
    (dict(out='photos'), 'is where the images are'),
    (dict(top=0), '--top must be 1 or more'),
], ids=str)
def test_refusals(folder, monkeypatch, change, message):
    monkeypatch.chdir(folder)
    args = dict(images='photos', model='color.py', checkpoint='color.pth')
    with pytest.raises(UserError, match=message):
        predict(**{**args, **change})
