# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A generated folder of images such as users have: four classes of texture.

Sizes are odd and colors random, a third is grey. Among them are a PNG with
an alpha channel, a CMYK JPEG and a file that is no image.
"""
import os
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ['checks', 'dots', 'rings', 'stripes']
BROKEN = 'checks/broken.jpg'


def photo(name: str, rng: np.random.Generator) -> Image.Image:
    """A texture with noise, in two colors or in grey."""
    height, width = rng.integers(49, 120, 2)
    y, x = np.mgrid[:height, :width] + rng.uniform(0, 16, 2)[:, None, None]
    x, y = np.stack([x, y]) * 2 * np.pi / rng.uniform(10, 16)
    wave = dict(
        stripes=np.sin(y), checks=np.sign(np.sin(x / 2) * np.sin(y / 2)),
        dots=np.cos(x) + np.cos(y) - 0.7,
        rings=np.sin(np.hypot(x - x.mean(), y - y.mean())))[name]
    dark, light = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    image = dark + (light - dark) / (1 + np.exp(-4 * wave[..., None]))
    image += rng.normal(0, 8, image.shape)
    photo = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return photo.convert('L') if rng.random() < 1 / 3 else photo


def write_images(root: Path, *names) -> None:
    """Write a small PNG for each name, of text or bytes, of any suffix."""
    for name in map(os.fsencode, names):
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            Image.new('RGB', (8, 8)).save(file, 'png')


def write_photos(root: Path, per_class: int) -> Path:
    """Write the folder: a folder for each class, no ``train`` and ``val``."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = photo(name, rng)
            image = image.convert({1: 'RGBA', 2: 'CMYK'}.get(i, image.mode))
            suffix = '.png' if i % 2 else '.jpg'
            image.save(root / name / f'{name}_{i:03d}{suffix}')
    (root / BROKEN).write_bytes(b'not an image')
    return root
