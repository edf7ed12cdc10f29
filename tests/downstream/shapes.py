# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Images of coloured shapes, in COCO's format and in ADE20K's.

    python tests/downstream/shapes.py OUT [--train 400] [--val 80]

writes OUT/{train,val}/*.png, OUT/{train,val}.json (COCO: boxes, polygons)
and OUT/{train,val}_masks/*.png (ADE20K: 0 is not labelled, 1 background,
2, 3, 4 the shapes).
"""
import argparse
import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle')
HUES = (0, 60, 120)  # red, green, blue, in OpenCV's half degrees


def outline(name: str, x: float, y: float, radius: float,
            angle: float) -> np.ndarray:
    """Corners of a shape within a circle about (x, y), (N, 2), in pixels."""
    corners = {'circle': 24, 'square': 4, 'triangle': 3}[name]
    angles = angle + np.arange(corners) * 2 * np.pi / corners
    points = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.round(points + (x, y)).astype(np.int32)


def draw(rng: np.random.Generator, size: int):
    """One image: the picture, its mask and its shapes.

    Returns:
        tuple: BGR picture (size, size, 3), ADE20K's mask (size, size), both
        uint8, and a list of (class index, corners, mask of that shape).
    """
    coarse = rng.integers(60, 196, (4, 4, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    mask = np.ones((size, size), np.uint8)
    shapes, taken = [], []
    for _ in range(rng.integers(2, 5)):
        label = rng.integers(len(CLASSES))
        radius = rng.uniform(0.11, 0.21) * size
        x, y = rng.uniform(radius + 1, size - radius - 1, 2)
        # Apart from one another, so that every outline is seen whole.
        if any(np.hypot(x - a, y - b) < radius + r + 2 for a, b, r in taken):
            continue
        taken.append((x, y, radius))
        corners = outline(CLASSES[label], x, y, radius, rng.uniform(0, 6.28))
        own = np.zeros_like(mask)
        cv2.fillPoly(own, [corners], 1)
        colour = np.array([[[(HUES[label] + rng.integers(-20, 21)) % 180,
                             rng.integers(120, 256),
                             rng.integers(120, 256)]]], np.uint8)
        image[own > 0] = cv2.cvtColor(colour, cv2.COLOR_HSV2BGR)[0, 0]
        mask[own > 0] = label + 2
        # The border belongs to nobody, as parts of ADE20K's images do.
        cv2.polylines(mask, [corners], True, 0)
        shapes.append((int(label), corners, own))
    noise = rng.normal(0, 8, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image, mask, shapes


def generate(out: Path, num_train: int = 400, num_val: int = 80,
             size: int = 128, seed: int = 0) -> Path:
    """Write both splits below ``out``; the same ones for the same seed."""
    out = Path(out)
    for split, count in (('train', num_train), ('val', num_val)):
        # A stream for each split: the held-out images are others.
        rng = np.random.default_rng([seed, split == 'val'])
        for folder in (split, f'{split}_masks'):
            (out / folder).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            image, mask, shapes = draw(rng, size)
            name = f'{i:04d}.png'
            cv2.imwrite(str(out / split / name), image)
            cv2.imwrite(str(out / f'{split}_masks' / name), mask)
            images.append(
                dict(id=i, file_name=name, width=size, height=size))
            for label, corners, own in shapes:
                x, y, width, height = cv2.boundingRect(corners)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=label + 1,
                        bbox=[x, y, width, height],
                        segmentation=[corners.flatten().tolist()],
                        area=int(own.sum()),
                        iscrowd=0))
        categories = [
            dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)
        ]
        (out / f'{split}.json').write_text(
            json.dumps(
                dict(
                    images=images,
                    annotations=annotations,
                    categories=categories)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description='Generate coloured shapes')
    parser.add_argument('out', type=Path, help='folder to write')
    parser.add_argument('--train', type=int, default=400, help='images')
    parser.add_argument('--val', type=int, default=80, help='images')
    args = parser.parse_args()
    generate(args.out, args.train, args.val)


if __name__ == '__main__':
    main()
