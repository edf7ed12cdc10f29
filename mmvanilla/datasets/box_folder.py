# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Folders of images with boxes, in the layouts of COCO, Roboflow and YOLO."""
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..utils.errors import UserError
from ..utils.terminal import some, track
from .image_files import read_size
from .image_folder import counted, hold_out
from .yolo import parse, read_yolo

ANNOTATIONS = dict(
    train=('annotations/instances_train*.json',
           'annotations/instances_default.json',
           'train/_annotations.coco.json'),
    val=('annotations/instances_val*.json', 'val*/_annotations.coco.json'),
    test=('annotations/instances_test*.json', 'test/_annotations.coco.json'))


class BoxFolder:
    """The images and boxes of a folder, checked. It is only read.

    ``masks`` is True where they are learned, False where they are only loaded
    and None where they are not.
    """

    def __init__(self, root: Path, masks: bool | None = None) -> None:
        # What is wrong, and with what; splits as {file: (size, boxes)}.
        self.root, self.faults, self.splits = root, defaultdict(list), {}
        self.masks, classes = masks, {}
        for split, path, data in _find_annotations(root):
            if split == 'test':
                self.faults['splits called test are not used'].append(path)
                continue
            if split in self.splits:
                raise UserError(f'--data: {root} has two annotations of '
                                f'{split}, one of them {path}: keep one')
            classes[split] = self._read(split, path, data)
        if not classes:
            raise UserError(
                f'--data: {root} is not a folder of boxes, which holds one of '
                'annotations/instances_train*.json (COCO), train/_annotations.'
                'coco.json (Roboflow), data.yaml or dataset.yaml (YOLO; with '
                'labels only, write one, with train and names)')
        train, val = (self.splits.get(x, {}) for x in ('train', 'val'))
        for file in sorted(train.keys() & val.keys()):
            self.faults['images of val are left out of train'].append(file)
            del train[file]
        split, names = next(iter(classes.items()))  # of train, if it is there
        used = {box['name'] for box in self._boxes(split)}
        self.faults['names of groups of classes are no classes'] += [
            x for x in names if names[x] and x not in used]
        names = [x for x in names if x in used or not names[x]]
        self.faults[f'classes have no box in {split}'] += [
            x for x in names if x not in used]
        self.notes = counted(self.faults)
        self.use_classes(names, split)
        if 'val' not in self.splits:  # of images with boxes, and of others
            files = {x: os.path.basename(x) for x in train}
            full = {files[x] for x, (_, boxes) in train.items()
                    if not all(box['iscrowd'] for box in boxes)}
            held = hold_out(full) | hold_out({*files.values()} - full)
            self.splits['val'] = {
                x: train.pop(x) for x in files if files[x] in held}

    def _boxes(self, *splits: str) -> list[dict]:
        return [box for split in splits for _, boxes in
                self.splits.get(split, {}).values() for box in boxes]

    def require(self, *splits: str) -> None:
        """Refuse splits of which nothing can be learned or measured."""
        for split in splits:
            if all(x['iscrowd'] for x in self._boxes(split)):
                what = 'box with a polygon' if self.masks else 'box'
                raise UserError('; '.join([
                    f'--data: {self.root} has no {what} for {split}',
                    *self.notes]))

    def use_classes(self, classes: Sequence[str], owner: str) -> None:
        """Number the classes as ``owner`` does; refuse others with boxes."""
        unknown = {x['name'] for x in self._boxes(*self.splits)} - {*classes}
        if unknown:
            raise UserError(
                f'--data: {self.root} has boxes of {some(sorted(unknown))}, '
                f'but the classes of {owner} are {some(classes, 12)}')
        self.classes = [*classes]

    def to_coco(self, split: str) -> dict:
        """A split in COCO's format."""
        numbers = {name: i for i, name in enumerate(self.classes, 1)}
        images, annotations = [], []
        for file, ((width, height), boxes) in self.splits[split].items():
            images.append(dict(id=len(images) + 1, file_name=file,
                               width=width, height=height))
            annotations += [
                dict(box, id=i, image_id=len(images),
                     category_id=numbers[box['name']])
                for i, box in enumerate(boxes, len(annotations) + 1)]
        return dict(images=images, annotations=annotations, categories=[
            dict(id=i, name=name) for name, i in numbers.items()])

    def _read(self, split: str, path: Path, data: dict) -> dict[str, bool]:
        """Check a split in COCO's format; names, True if those of groups."""
        part, faults = path.stem.removeprefix('instances_'), self.faults
        folders = [self.root / x for x in (
            part, f'images/{part}', 'images', '')] if (
                path.parent.name == 'annotations') else [path.parent]
        entry, names, files, images = None, {}, {}, {}
        self.splits[split] = {}
        faults['label files without an image are not used'] += data.get(
            'lone', ())
        for key in ('categories', 'images', 'annotations'):
            if not isinstance(data.get(key), list):
                raise UserError(f'--data: {path} has no list of {key}')
        try:
            for entry in sorted(data['categories'], key=lambda x: x['id']):
                name = str(entry['name'])
                if entry['id'] in names:
                    raise ValueError('its id is that of another category')
                if type(entry['name']) not in (str, int, float) or not name:
                    raise ValueError('its name is not text: quote it')
                if name in names.values():
                    faults['names of classes occur twice'].append(name)
                names[entry['id']] = name
            groups = {x.get('supercategory') for x in data['categories']
                      if x['name'] != x.get('supercategory')}
            for entry in data['images']:
                name = entry['file_name']
                file = next((os.path.normpath(y) for y in (
                    x / name for x in folders) if y.is_file()), '')
                file = file.removeprefix(f'{self.root}/')
                if not file:
                    faults['images without a file are left out'].append(name)
                elif files.get(entry['id'], file) != file:
                    raise ValueError('its id is that of another image')
                files[entry['id']] = file
                images[file] = tuple(
                    float(entry.get(x) or 0) for x in ('width', 'height'))
            used = [x for x in dict.fromkeys(files.values()) if x]
            for file in track(used, f'reading headers of {split}', len(used)):
                size = read_size(self.root / file)
                if not size:
                    faults['unreadable images are left out'].append(file)
                elif all(images[file]) and images[file] != size:
                    faults['images are left out, as their size is not that in '
                           'the json'].append(file)
                else:
                    self.splits[split][file] = size, []
            for entry in data['annotations']:
                label = entry['category_id']
                if entry['image_id'] not in files:
                    raise ValueError('images has no such image_id')
                file = files[entry['image_id']]
                where = entry.get('line', f'{file} (id {entry.get("id")})')
                if label not in names:
                    raise UserError(
                        f'--data: {where} has the class {label}, but {path} '
                        f'has {len(names)}: {some([*names], 12)}')
                if not all(map(math.isfinite, entry['bbox'])):
                    raise ValueError('its box is not finite')
                if int(entry.get('ignore') or 0):  # as mmdet does
                    faults['boxes to ignore are left out'].append(where)
                elif file in self.splits[split]:
                    size, boxes = self.splits[split][file]
                    boxes += self._check_box(entry, *size, where, names[label])
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            text = f'{"no " * isinstance(e, KeyError)}{e}: {entry}'
            raise UserError(f'--data: {path} has an entry that cannot be read:'
                            f' {" ".join(text.split()):.160}') from e
        faults['images have no box, and are background'] += [
            x for x, (_, boxes) in self.splits[split].items() if not boxes]
        return {x: x in groups for x in names.values()}

    def _check_box(self, entry: dict, width: int, height: int, where: str,
                   name: str) -> list[dict]:
        """The part of a box that is in its image, if there is any."""
        x, y, w, h = entry['bbox']
        limits, faults = (width, height) * 2, self.faults
        scale = limits if entry.get('relative') else (1, 1, 1, 1)
        corners = [a * b for a, b in zip((x, y, x + w, y + h), scale)]
        # Rounded, so that relative boxes are the same as those in pixels.
        inside = [round(min(max(a, 0), b), 3) for a, b in zip(corners, limits)]
        x, y, w, h = *inside[:2], inside[2] - inside[0], inside[3] - inside[1]
        outline = entry.get('segmentation')
        crowd = int(entry.get('iscrowd') or 0)
        if isinstance(outline, list):
            whole = [[a * scale[i % 2] for i, a in enumerate(points)]
                     for points in outline if len(points) > 5]
            if len(whole) < len(outline):
                faults['polygons of under 3 points are left out'].append(where)
            outline = whole
        if w < 1 or h < 1:  # mmdet leaves them out silently
            faults['boxes are outside of their image or empty (less than a '
                   'pixel), and are left out'].append(where)
            return []
        if max(abs(a - b) for a, b in zip(corners, inside)) > 0.5:
            faults['boxes are clipped to their image'].append(where)
        if self.masks and not outline:
            faults['boxes without a polygon are ignored'].append(where)
        if self.masks is not None and not outline:
            crowd = int(self.masks or crowd)
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        return [dict(name=name, bbox=[x, y, w, h], iscrowd=crowd,
                     area=entry.get('area') or w * h,
                     **dict(segmentation=outline) if outline else {})]


def _find_annotations(root: Path) -> Iterator[tuple[str, Path, dict]]:
    """Splits, with the file that has their annotations, and what it holds."""
    for split, patterns in ANNOTATIONS.items():
        for path in sorted(y for x in patterns for y in root.glob(x)):
            yield split, path, {} if split == 'test' else parse(
                path, json.loads)
    for path in sorted(root.glob('data*.yaml')):
        yield from read_yolo(root, path)
