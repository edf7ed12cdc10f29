# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import sys

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from mmengine.config import Config
from mmengine.logging import MMLogger
from photos import CLASSES, write_photos
from PIL import Image
from tiny import DIGITS, NARROW, ROOT

from mmvanilla.datasets.image_folder import find_images
from mmvanilla.engine.own_data import set_num_classes
from mmvanilla.engine.predict import main, predict
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError

IN1K = ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Photos, and a grey and a colored network of random weights."""
    folder = tmp_path_factory.mktemp('predict')
    write_photos(folder / 'photos', per_class=3)
    (folder / 'empty').mkdir()
    whole = (folder / 'photos/dots/dots_000.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(whole[:-99])
    for name, path in dict(grey=DIGITS, color=IN1K).items():
        cfg = Config.fromfile(path)
        cfg.model.backbone.arch = NARROW
        cfg.model.head.in_channels = 8
        # The config knows of ten or a thousand classes, the checkpoint of 4.
        cfg.dump(folder / f'{name}.py')
        set_num_classes(cfg, 4)
        torch.manual_seed(0)
        model = build_model(cfg)
        for parameter in model.parameters():
            # So that scores depend on the image.
            parameter.data.normal_(std=0.5 if parameter.dim() < 2 else 1)
        torch.save(dict(state_dict=model.state_dict(), meta=dict(
            dataset_meta=dict(classes=CLASSES))), folder / f'{name}.pth')
    cfg.dump(folder / 'alone.py')
    for name in ('model', 'test_dataloader'):
        (folder / f'no_{name}.py').write_text(
            f'{cfg.pretty_text}\n{name} = val_dataloader = None')
    return folder


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table.splitlines()[2:]]


def test_a_folder_in_color(folder, tmp_path):
    out = tmp_path / 'drawn'
    Image.open(folder / 'photos/dots/dots_000.jpg').save(
        folder / 'photos/dots/x.tif')
    found = rows(predict(
        str(folder / 'photos'), str(folder / 'color.py'), out=str(out), top=2))
    images = set(find_images(folder / 'photos'))
    # 13 images with 2 classes each, and one file that is no image.
    assert len(found) == 27
    assert ['checks/broken.jpg', 'cannot be read', ''] in found
    assert {row[0] for row in found} == {'', *images}
    assert {*find_images(out)} ^ images == {
        'checks/broken.jpg', 'dots/x.tif', 'dots/x.tif.png'}
    given, drawn = (np.asarray(Image.open(root / 'dots/dots_001.png').convert(
        'RGB')).astype(int) for root in (folder / 'photos', out))
    assert 0.01 < (np.abs(drawn - given).max(-1) > 60).mean() < 0.9


def test_scores_are_those_of_the_network(
        folder, tmp_path, monkeypatch, capsys):
    lines = np.random.default_rng(0).integers(0, 256, (32, 1), np.uint8)
    pixels = lines.repeat(32, axis=1)  # of the size that the network needs
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(np.rot90(pixels)).save(tmp_path / 'image.png', exif=exif)
    cfg = Config.fromfile(folder / 'grey.py')
    set_num_classes(cfg, 4)
    model = build_model(cfg)
    model.load_state_dict(torch.load(folder / 'grey.pth')['state_dict'])
    image = (torch.tensor(pixels) - 77.9) / 95.9
    scores = model(torch.stack([image, image.T])[:, None], mode='tensor')
    expected, turned = scores.softmax(1).tolist()
    assert np.abs(np.subtract(expected, turned)).max() > 2e-4
    for option in ('--top=4', '--deploy'):
        monkeypatch.setattr(sys, 'argv', [
            'mmvanilla-predict', str(tmp_path / 'image.png'),
            str(folder / 'grey.py'), str(folder / 'grey.pth'), option])
        main()
        found = rows(capsys.readouterr().out)
        assert [row[0] for row in found] == ['image.png', '', '', '']
        scores, names = zip(*sorted(zip(expected, CLASSES), reverse=True))
        assert [row[1] for row in found] == [*names]
        assert [float(x[2]) for x in found] == pytest.approx(scores, abs=2e-4)


def test_other_names(folder, tmp_path, monkeypatch):
    # Without classes in the checkpoint, those of ImageNet, its data set.
    config = str(folder / 'color.py')
    torch.save(build_model(Config.fromfile(config)).state_dict(),
               tmp_path / 'x.pth')
    found = rows(predict(str(folder / 'photos/dots/dots_000.jpg'), config,
                         str(tmp_path / 'x.pth'), top=1))
    assert found[0][1] not in CLASSES and not found[0][1].isdigit()
    # The weights of a published model are looked for in torch.hub's cache.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub/checkpoints/vanillanet_6.pth'
    file.parent.mkdir(parents=True)
    file.write_bytes(b'no weights')
    with pytest.raises(UserError, match=r'vanillanet_6'):
        predict(str(folder / 'photos'), 'vanillanet-6_8xb128_in1k')


@pytest.mark.parametrize('change, message', [
    (dict(images='nowhere'), 'no image or folder nowhere'),
    (dict(images='empty'), r'no images in empty: names must end in \.jpg'),
    (dict(images='photos/checks/broken.jpg'),
     r'broken\.jpg cannot be read: OpenCV cannot decode it$'),
    (dict(images='cut.jpg'), r'the image cut\.jpg cannot be read: cut short$'),
    (dict(model='vanilanet-6_8xb128_in1k'), 'you mean vanillanet-6_8xb128_in'),
    (dict(model='alone.py', checkpoint=None), 'no checkpoint of alone.py is'),
    (dict(model='no_model.py'), 'no_model.py has no model, which prediction'),
    (dict(model='no_test_dataloader.py'), 'must be a config of mmpretr'),
    (dict(checkpoint='grey.pth'), r'grey\.pth does not fit'),
    (dict(out='photos'), 'is where the images are'),
    (dict(top=0), '--top must be 1 or more'),
], ids=str)
def test_refusals(folder, monkeypatch, change, message):
    monkeypatch.chdir(folder)
    args = dict(images='photos', model='color.py', checkpoint='color.pth')
    with pytest.raises(UserError, match=message):
        predict(**{**args, **change})


def test_what_is_special_about_images_is_said(folder, tmp_path, capsys):
    Image.fromarray(np.full((40, 40), 900, np.uint16)).save(
        tmp_path / 'deep.png')
    with open(os.fsencode(tmp_path) + b'/\xb9\xb7.png', 'wb') as file:
        Image.new('RGB', (40, 40)).save(file, 'png')
    (tmp_path / 'photo.heic').touch()
    found = rows(predict(str(tmp_path), str(folder / 'color.py'), top=1))
    # A name that is not UTF-8 can be printed.
    assert [row[0] for row in found] == ['deep.png', '\\udcb9\\udcb7.png']
    said = capsys.readouterr().err
    assert 'largest value, 900, becomes 3' in said and '1 .heic' in said


def test_names_are_drawn_in_a_font_that_has_them(folder, tmp_path, caplog):
    """A font of boxes, which are white on the black of the text's frame."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    characters = [chr(i) for i in (*range(33, 127), 0x10920)]  # Lydian A

    def write_font():
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, 900), (900, 900), (900, 0)):
            pen.lineTo(point)
        pen.closePath()
        glyphs = dict.fromkeys(
            (f'u{ord(x):05X}' for x in characters), pen.glyph())
        font = FontBuilder(1000)
        font.setupGlyphOrder(['.notdef', *glyphs])
        font.setupCharacterMap(dict(zip(map(ord, characters), glyphs)))
        font.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), **glyphs})
        font.setupHorizontalMetrics(
            {x: (1000, 0) for x in ('.notdef', *glyphs)})
        font.setupHorizontalHeader(ascent=900, descent=-100)
        font.setupNameTable(dict(familyName='Boxes', styleName='Regular'))
        font.setupOS2()
        font.setupPost()
        font.save(tmp_path / 'boxes.ttf')

    content = torch.load(folder / 'color.pth', weights_only=False)
    Image.new('RGB', (300, 300)).save(tmp_path / 'black.png')

    def drawn(name):
        content['meta']['dataset_meta']['classes'] = [name] * 4
        torch.save(content, tmp_path / 'x.pth')
        predict(str(tmp_path / 'black.png'), str(folder / 'color.py'),
                str(tmp_path / 'x.pth'), out=str(tmp_path / 'out'))
        return (np.asarray(Image.open(tmp_path / 'out/black.png')) > 200).sum()

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        before = drawn('\U00010920')
    finally:
        logger.removeHandler(caplog.handler)
    assert 'no font has \U00010920, ' in caplog.text
    fonts = font_manager.fontManager.ttflist
    write_font()
    font_manager.fontManager.addfont(tmp_path / 'boxes.ttf')
    try:
        assert drawn('\U00010920') > 2 * before
        # Of the former, matplotlib would make an italic a.
        assert drawn('\U00010920$a$') == drawn('\U00010920bbb')
    finally:
        fonts.pop()
    assert drawn('\U00010920') == before
