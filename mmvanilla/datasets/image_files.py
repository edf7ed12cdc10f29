# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Which image files OpenMMLab can read, and why it cannot read others."""
import io
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..utils.terminal import some, track

# What OpenCV reads; it has some formats in some of its builds only.
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.dib', '.webp',
            '.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm', *filter(
                cv2.haveImageWriter, ('.jp2', '.gif', '.avif')))
TIFF, JPEG, PNG = (b'II*\0', b'MM\0*'), b'\xff\xd8', b'\x89P'
ENDS = {JPEG: b'\xff\xd9', PNG: b'IEND'}  # other bytes may follow
# If not all images are checked: of how many the header is read, and how many
# of those with an unusual one are decoded.
HEADERS, DECODED = 5000, 100


def check_image(path: str | Path) -> tuple[str, int | None]:
    """Why an image is misread, else '', and its largest value of 16 bits."""
    image = None
    try:
        # Not cv2.imread, which fails on some names that are not ASCII.
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except OSError as e:
        return str(e), None
    except cv2.error as e:
        if 'MAX_IMAGE_PIXELS' in e.err:
            return 'more pixels than OPENCV_IO_MAX_IMAGE_PIXELS', None
    data = data.tobytes()
    if image is None:
        return _pillow_error(data) or 'OpenCV cannot decode it', None
    if image.dtype not in (np.uint8, np.uint16):
        return f'values of {image.dtype} instead of 8 bits', None
    # OpenCV 4.10 decodes half a JPEG without an error.
    cut = data[:2] == JPEG and _lacks_end(data[:2], data[-64:])
    return cut and _pillow_error(data) or '', (
        int(image.max()) if image.dtype == np.uint16 else None)


def read_size(path: Path) -> tuple[int, int] | None:
    """Width and height as OpenCV reads an image; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            turned = 'exif' in image.info and image.getexif().get(274, 1) > 4
            if turned and image.format == 'WEBP':  # OpenCV 5 turns it, 4 not
                data = np.fromfile(path, np.uint8)
                return cv2.imdecode(data, cv2.IMREAD_COLOR).shape[1::-1]
            return image.size[::-1] if turned else image.size
    except Exception:  # of many kinds, by the format
        return None


def find_unreadable(root: Path, images: Sequence[str], check_all: bool
                    ) -> tuple[set[str], list[str]]:
    """The images that cannot be read, the same in each process, and notes."""
    def check(function, names, what):
        with ThreadPoolExecutor() as pool, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's, of large images
            return dict(zip(names, track(pool.map(
                lambda x: function(root / x), names), what, len(names))))

    some_of_them = images
    if not check_all:
        some_of_them = images[::-(-len(images) // HEADERS) or 1]
        unusual = check(_is_unusual, some_of_them, 'reading headers')
        some_of_them = [x for x in some_of_them if unusual[x]]
        some_of_them = some_of_them[::-(-len(some_of_them) // DECODED) or 1]
    reasons, values = defaultdict(list), []
    checked = check(check_image, some_of_them, 'checking images')
    for name, (problem, largest) in checked.items():
        if problem:
            reasons[problem].append(name)
        elif largest is not None:
            values.append(largest)
    bad, notes = {*chain(*reasons.values())}, []
    count = 'at least ' * (not check_all) + f'{{}} of {len(images)} images '
    if bad:
        listed = ', '.join(
            f'{some(names, 1)} ({why})' for why, names in reasons.items())
        notes.append(count.format(len(bad)) +
                     f'are unreadable and are left out: {listed}')
    if values:
        notes.append(
            count.format(len(values)) + 'have 16 bits, of which the upper 8 '
            f'are used: the largest value, {max(values)}, becomes '
            f'{max(values) // 256}')
    return bad, notes


def _lacks_end(start: bytes, end: bytes) -> bool:
    return ENDS.get(start, b'') not in end


def _is_unusual(path: Path) -> bool:
    try:
        with open(path, 'rb') as file:
            head = file.read(32)
            file.seek(-min(64, os.path.getsize(path)), os.SEEK_END)
            if (head[:4] in TIFF or head[:2] == PNG and head[24] == 16
                    or _lacks_end(head[:2], file.read())):
                return True
            with Image.open(file) as image:
                return image.mode[0] in 'IF' or max(image.size) > 2**15
    except Exception:  # of many kinds, by the format
        return True


def _pillow_error(data: bytes) -> str:
    try:
        file = io.BytesIO(data)
        if data[:4] in TIFF:
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            if tags.get(277, 1) > 4:
                return f'{tags[277]} bands, of which OpenCV reads 4 at most'
        with Image.open(file) as image:
            image.load()
    except Exception as e:  # of many kinds, by the format
        return 'cut short' if 'truncated' in str(e) else ''
    return ''
