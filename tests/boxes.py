# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The same images and boxes in each layout that --data takes."""
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ['circle', 'square', 'triangle']
LAYOUTS = ['coco', 'roboflow', 'yolo', 'polygons', 'pose', 'lists']


def generate(train: int = 10, val: int = 5) -> dict:
    """Sizes, and labels with corners of a polygon, by split and name."""
    rng, found = np.random.default_rng(0), dict(train={}, val={})
    for i in range(train + val):
        size = rng.integers(33, 99, 2)
        shapes = []
        for label in rng.integers(0, 3, i % 4):
            points = rng.uniform(0.1, 0.9) * size + rng.uniform(
                -0.1, 0.1, (5, 2)) * size
            shapes.append((int(label), points))
        found['val' if i >= train else 'train'][f'{i:03}.png'] = size, shapes
    return found


def box(points) -> np.ndarray:
    """x, y, width and height."""
    return np.concatenate([points.min(0), np.ptp(points, 0)])


def coco(images: dict, polygons: bool = False) -> dict:
    content = dict(images=[], annotations=[], categories=[
        dict(id=i + 7, name=x) for i, x in enumerate(CLASSES)])
    for i, (name, (size, shapes)) in enumerate(images.items(), 5):
        content['images'].append(dict(
            id=i, file_name=name, width=int(size[0]), height=int(size[1])))
        for label, points in shapes:
            content['annotations'].append(dict(
                id=len(content['annotations']), image_id=i, iscrowd=0,
                category_id=label + 7, bbox=box(points).tolist(),
                area=float(np.prod(box(points)[2:]))))
            if polygons:
                content['annotations'][-1]['segmentation'] = [
                    points.flatten().tolist()]
    return content


def write(root: Path, layout: str, images: dict | None = None) -> Path:
    """Write images of noise, boxes in a color of their class, annotations."""
    rng = np.random.default_rng(1)
    for split, found in (images or generate()).items():
        folder = root / {
            'coco': split, 'roboflow': dict(val='valid').get(split, split)
        }.get(layout, f'images/{split}')
        folder.mkdir(parents=True)
        for name, ((width, height), shapes) in found.items():
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            for label, points in shapes:
                x, y, w, h = box(points).round().astype(int)
                image[y:y + h, x:x + w] = np.eye(3)[label] * 255
            Image.fromarray(image).save(folder / name)
        if layout == 'coco':
            path = root / f'annotations/instances_{split}2017.json'
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(coco(found, True)))
            folder.rename(root / f'{split}2017')
        elif layout == 'roboflow':
            content = coco(found)
            for category in content['categories']:
                category['supercategory'] = 'shapes'
            content['categories'].append(
                dict(id=0, name='shapes', supercategory='none'))
            (folder / '_annotations.coco.json').write_text(
                json.dumps(content))
        else:
            write_labels(root / f'labels/{split}', found, layout)
    names = '[circle, square, triangle]'
    if layout == 'lists':
        for split in ('train', 'val'):
            (root / f'{split}.txt').write_text(''.join(
                f'./images/{split}/{x.name}\n' for x in sorted(
                    (root / f'images/{split}').iterdir())))
        (root / 'dataset.yaml').write_text(
            f'train: [train.txt, images/train]\nval: val.txt\n'
            f'names: {names}\n')
    elif layout in ('yolo', 'polygons', 'pose'):
        (root / 'data.yaml').write_text(
            'path: /another/machine\ntrain: ../images/train\nval: images/val\n'
            'names: {0: circle, 1: square, 2: triangle}\n' +
            'kpt_shape: [5, 2]\n' * (layout == 'pose'))
    return root


def write_labels(folder: Path, images: dict, layout: str) -> None:
    folder.mkdir(parents=True)
    for name, (size, shapes) in images.items():
        lines = []
        for label, points in shapes:
            x, y, w, h = box(points / size)
            numbers = (points / size).flatten() if layout == 'polygons' else (
                x + w / 2, y + h / 2, w, h,
                *(points / size).flatten()[:10 * (layout == 'pose')])
            lines.append(' '.join([str(label), *(f'{n:.7f}' for n in numbers)
                                   ]) + '\n')
        if lines:  # tools write no file for an image without a box
            (folder / name).with_suffix('.txt').write_text('\n'.join(lines))


def digests(root: Path) -> dict:
    return {x: hashlib.sha256(x.read_bytes()).hexdigest()
            for x in root.rglob('*') if x.is_file()}
