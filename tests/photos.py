# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A generated folder of images such as users have: four classes of texture.

Sizes are odd and colours random, a third is grey. Among them are a PNG with
an alpha channel, a CMYK JPEG and a file that is no image.
"""
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ['checks', 'dots', 'rings', 'stripes']
BROKEN = 'checks/broken.jpg'


def texture(name: str, rng: np.random.Generator, height: int,
            width: int) -> np.ndarray:
    """One texture between two levels, (height, width) from 0 to 1."""
    y, x = np.mgrid[:height, :width].astype(float)
    period = rng.uniform(10, 16)
    # Turned by up to 20 degrees, shifted by up to a period.
    angle = rng.uniform(-0.35, 0.35)
    u = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, period)
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(0, period)
    u, v = 2 * np.pi * u / period, 2 * np.pi * v / period
    if name == 'stripes':
        wave = np.sin(v)
    elif name == 'checks':
        wave = np.sign(np.sin(u / 2) * np.sin(v / 2))
    elif name == 'dots':
        wave = np.cos(u) + np.cos(v) - 0.7
    else:
        centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * (height, width)
        wave = np.sin(
            2 * np.pi * np.hypot(y - centre_y, x - centre_x) / period)
    return 1 / (1 + np.exp(-4 * wave))


def photo(name: str, rng: np.random.Generator) -> Image.Image:
    """A texture with uneven light and noise, in two colours or in grey."""
    height, width = rng.integers(49, 120, 2)
    blend = texture(name, rng, height, width)[..., None]
    dark, light = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    image = dark + (light - dark) * blend
    image *= np.linspace(*rng.uniform(0.7, 1.1, 2), width)[None, :, None]
    image += rng.normal(0, 8, image.shape)
    photo = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return photo.convert('L') if rng.random() < 1 / 3 else photo


def write_photos(root: Path, per_class: int = 40, seed: int = 0) -> None:
    """Write the folder: a folder for each class, no ``train`` and ``val``."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = photo(name, rng)
            suffix = '.png' if i % 2 else '.jpg'
            if i == 1:
                image = image.convert('RGBA')
                image.putalpha(128)
            elif i == 2:
                image = image.convert('CMYK')
            image.save(root / name / f'{name}_{i:03d}{suffix}')
    (root / BROKEN).write_bytes(b'not an image')
