# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Images as cameras, microscopes and broken downloads make them."""
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from mmvanilla.datasets.image_files import find_unreadable

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 36, 3), np.uint8)
COLOR = Image.fromarray(PIXELS)


def saved(image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, as large as wanted."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack(
            '>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(
            b'IDAT', zlib.compress(bytes(999))) + chunk(b'IEND', b'')


def tiff(bands: int) -> bytes:
    """A TIFF of 4 x 4 pixels of 8 bits."""
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 200),
            (277, bands), (278, 4), (279, 16 * bands)]
    data = b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(
        struct.pack('<HHIHH', tag, 3, 1, value, 0) for tag, value in tags)
    return data.ljust(200, b'\0') + bytes(16 * bands)


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


GOOD = dict(
    grey=saved(COLOR.convert('L'), 'png'), alpha=saved(
        COLOR.convert('RGBA'), 'png'), grey_alpha=saved(
        COLOR.convert('LA'), 'png'), palette=saved(COLOR.convert('P'), 'png'),
    cmyk=saved(COLOR.convert('CMYK'), 'jpeg'), bits=saved(
        COLOR.convert('1'), 'png'), progressive=saved(
        COLOR, 'jpeg', progressive=True), webp=saved(COLOR, 'webp'),
    pages=saved(COLOR, 'tiff', save_all=True, append_images=[COLOR]),
    # A phone writes bytes of its own after the end.
    longer=saved(COLOR, 'jpeg') + bytes(99), bands=tiff(4))
BAD = {
    'cut short': [saved(COLOR, 'jpeg')[:-200], saved(COLOR, 'jpeg')[:-2],
                  saved(COLOR.convert('L'), 'png')[:-99],
                  saved(COLOR, 'tiff')[:-40]],
    'OpenCV cannot decode it': [
        b'<html>not found</html>', bytes(99),
        b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(99)],
    'values of float32 instead of 8 bits': [
        encoded('.tif', np.float32(PIXELS)[..., 0])],
    '7 bands': [tiff(7)],
    'more pixels than OPENCV_IO_MAX_IMAGE_PIXELS': [png(40000, 30000)]}


@pytest.mark.parametrize('check_all', [True, False])
def test_what_is_wrong_is_named(tmp_path, check_all):
    """Whatever the suffix, which is often another's."""
    contents = {f'{name}.jpg': data for name, data in GOOD.items()} | {
        f'{i}{j}.png': data for i, datas in enumerate(BAD.values())
        for j, data in enumerate(datas)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    bad, notes = find_unreadable(tmp_path, [*contents], check_all)
    assert bad == {x for x in contents if x.endswith('.png')}
    note, = notes
    assert f'{len(bad)} of {len(contents)} images are unreadable' in note
    for i, (reason, datas) in enumerate(BAD.items()):
        more = f' and {len(datas) - 1} more' * (len(datas) > 1)
        assert f'{i}0.png{more} ({reason}' in note
    # The good ones are those that the pipeline reads.
    load = TRANSFORMS.build(dict(type='LoadImageFromFile'))
    for name in contents.keys() - bad:
        image = load(dict(img_path=str(tmp_path / name)))['img']
        assert image.dtype == np.uint8 and image.shape[2] == 3
        if name[:-4] not in ('palette', 'bits', 'bands'):
            expected = Image.open(tmp_path / name).convert('RGB')
            assert np.abs(image[..., ::-1] - np.int32(expected)).max() < 9


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.pgm'])
@pytest.mark.parametrize('check_all', [True, False])
def test_16_bits(tmp_path, suffix, check_all):
    for i, top in enumerate((4095, 700)):
        image = np.linspace(0, top, 36, dtype=np.uint16).reshape(6, 6)
        (tmp_path / f'{i}{suffix}').write_bytes(encoded(suffix, image))
    (tmp_path / 'a.png').write_bytes(GOOD['grey'])
    bad, notes = find_unreadable(
        tmp_path, [f'0{suffix}', f'1{suffix}', 'a.png'], check_all)
    assert not bad and len(notes) == 1
    assert '2 of 3 images have 16 bits' in notes[0]
    read = cv2.imread(str(tmp_path / f'0{suffix}')).max()
    assert f'largest value, 4095, becomes {15}' in notes[0] and read <= 16


def test_a_sample_of_many_images(tmp_path):
    """Without decoding them all, and the same ones whenever it is asked."""
    for i in range(300):
        (tmp_path / f'{i:03}').write_bytes(
            BAD['cut short'][0] if i > 20 else GOOD['webp'])
    names = [f'{i:03}' for i in range(300)]
    bad, notes = find_unreadable(tmp_path, names, False)
    assert 90 <= len(bad) <= 100 and min(bad) >= '021'
    assert (bad, notes) == find_unreadable(tmp_path, names, False)
    assert len(find_unreadable(tmp_path, names, True)[0]) == 279
