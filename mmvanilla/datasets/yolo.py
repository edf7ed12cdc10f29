# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""YOLO's labels, one text file for each image, in COCO's format."""
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from ..utils.errors import UserError
from ..utils.terminal import track
from .image_files import SUFFIXES


def read_yolo(root: Path, path: Path) -> Iterator[tuple[str, Path, dict]]:
    """The splits of YOLO's layout in COCO's format, with relative boxes."""
    data = parse(path, yaml.safe_load)
    names = data.get('names')
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or not all(
            str(x).isdecimal() for x in names):
        raise UserError(f'--data: {path} must have names: a list of classes, '
                        'or their names by number')
    data['val'] = data.get('val') or data.get('valid')
    # Some tools write a path of their own machine, or ../train/images.
    bases = [root / str(data.get('path') or ''), root]
    for split in [x for x in ('train', 'val', 'test') if data.get(x)]:
        files, lone = [], []
        given = data[split] if split != 'test' else []
        for place in given if isinstance(given, list) else [given]:
            found = _find(str(place), bases)
            if not found:
                raise UserError(f'--data: {path} has {split}: {place}, which '
                                'is not there')
            if found.is_file():
                lines = found.read_text('utf-8-sig', 'replace').splitlines()
                files += [_find(x, [found.parent, *bases]) or Path(x)
                          for x in lines if x]
                continue
            images = _list(found, SUFFIXES)
            files += images
            lone += sorted({*_list(Path(_beside(f'{found}/')), '.txt')} - {
                Path(_beside(x)).with_suffix('.txt') for x in images})
        files = [*dict.fromkeys(
            os.path.normpath(x).removeprefix(f'{root}/') for x in files)]
        yield split, path, dict(
            lone=[str(x).removeprefix(f'{root}/') for x in lone
                  if x.name != 'classes.txt'],
            categories=[dict(id=int(i), name=x) for i, x in names.items()],
            images=[dict(id=i, file_name=x) for i, x in enumerate(files)],
            annotations=[dict(x, image_id=i) for i, file in enumerate(track(
                files, f'reading boxes of {split}', len(files)))
                for x in _read_labels(root, file, 'kpt_shape' in data)])


def _find(path: str, bases: list[Path]) -> Path | None:
    return next((x for x in (y / z for z in (path, path.lstrip('./'))
                             for y in bases) if x.exists()), None)


def _list(folder: Path, suffixes: str | tuple[str, ...]) -> list[Path]:
    return sorted(Path(path, x) for path, _, inside in os.walk(
        folder, followlinks=True) for x in inside
        if x.lower().endswith(suffixes))


def _beside(path: str | Path) -> str:
    """Where labels are, for a folder of images or one of them."""
    return re.sub(r'(^|.*/)images/', r'\1labels/', str(path))


def _read_labels(root: Path, file: str, pose: bool) -> Iterator[dict]:
    """The boxes of an image: lines of a class and a box or a polygon."""
    path = _beside(os.path.splitext(file)[0]) + '.txt'
    if not (root / path).is_file():
        return
    lines = (root / path).read_text('utf-8-sig', 'replace').splitlines()
    for i, line in enumerate(lines, 1):
        try:
            label, *numbers = map(float, line.split() or ['0', '0', '0'])
            numbers = numbers[:4] if pose else numbers  # no key points
            xs, ys = numbers[::2], numbers[1::2]
            x, y, right, bottom = min(xs), min(ys), max(xs), max(ys)
            if len(xs) != len(ys) or label % 1 or not all(
                    map(math.isfinite, numbers)):
                raise ValueError
        except ValueError:
            raise UserError(
                f'--data: {root / path}, line {i}: wanted the numbers of a '
                'class and of a box or a polygon, but got '
                f'{line.strip()[:60]!r}') from None
        found = dict(line=f'{path}, line {i}', category_id=int(label),
                     relative=True)
        if len(numbers) == 4:
            (x, w), (y, h) = xs, ys
            yield dict(found, bbox=[x - w / 2, y - h / 2, w, h])
        elif line.strip():
            yield dict(found, segmentation=[numbers],
                       bbox=[x, y, right - x, bottom - y])


def parse(path: Path, function: Callable) -> dict:
    """Read JSON or YAML, which must be a mapping."""
    try:
        return dict(function(path.read_text('utf-8-sig')))
    except (TypeError, ValueError, yaml.YAMLError, RecursionError) as e:
        raise UserError(f'--data: cannot read {path}: '
                        f'{" ".join(str(e).split())}') from e
