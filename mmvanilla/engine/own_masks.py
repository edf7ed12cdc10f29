# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config of mmseg read a folder of masks, as ``--data`` does."""
import hashlib
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmseg.evaluation import IoUMetric
from PIL import Image

from ..datasets.image_files import find_unreadable, read_size
from ..datasets.image_folder import counted, find_images, hold_out, left_out
from ..utils.configs import type_name
from ..utils.errors import UserError
from ..utils.files import write_beside
from ..utils.terminal import some, track
from .own_boxes import work_folder, write_annotations
from .own_data import find_datasets, set_in_place, trained_classes

# What loss and metric leave out, and what is the color of no class.
IGNORED, UNKNOWN = 255, 254


class IoUByClass(IoUMetric):
    """mmseg's metric; it also returns the IoU of each class, in percent."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Add the classes, which mmseg only prints."""
        areas = [sum(x) for x in zip(*results)]
        by_class = (100 * areas[0] / areas[1]).tolist() if areas else ()
        return super().compute_metrics(results) | {
            f'IoU/{name}': round(value, 2) for name, value in zip(
                self.dataset_meta['classes'], by_class) if value == value}


def use_mask_folder(cfg: Config, folder: str, checkpoint: str | None = None,
                    check_images: bool = False) -> list[str]:
    """Make a segmentor's config, in place, use a folder of masks."""
    root = Path(folder).expanduser().absolute()
    classes, colors = _read_classes(root / 'classes.txt')
    splits, notes = _find_pairs(root)
    bad, more = find_unreadable(root, [*chain(*splits.values())], check_images)
    notes, numbers, paths = notes + more, {}, {}
    if checkpoint and splits['train']:
        notes.append(f'--data: {len(splits["train"])} images are for training,'
                     f' and {len(splits["val"])} for validation')
    for split, pairs in splits.items():
        pairs = {x: y for x, y in pairs.items() if x not in bad}
        if not pairs and (split == 'val' or not checkpoint):
            raise UserError('; '.join([
                f'--data: {root} has no image with a mask for {split}, as '
                'images/train/a.jpg with masks/train/a.png', *notes]))
        masks, numbers[split] = _read_masks(root, pairs, colors, cfg)
        paths[split] = write_annotations(dict(metainfo={}, data_list=[
            dict(img_path=image, seg_map_path=mask, seg_fields=[],
                 label_map=None, reduce_zero_label=False)
            for image, mask in zip(pairs, masks)]), cfg, split)
    found = sorted({*chain(*numbers.values())})
    trained = trained_classes(checkpoint) if checkpoint else classes
    if classes not in ([], trained):
        raise UserError(f'--data: {root} has the classes {some(classes, 12)}, '
                        f'but {checkpoint} those of {some(trained, 12)}')
    classes = trained or [str(i) for i in range(max(found, default=0) + 1)]
    if not len(classes) < UNKNOWN or found[-1:] >= [len(classes)] or not (
            numbers['val'] and (checkpoint or len(numbers['train']) > 1)):
        raise UserError(
            f'--data: the masks of {root} have the numbers '
            f'{some(found or ["none"], 12)} (beside {IGNORED}, which is left '
            f'out) of {len(classes)} classes: name all in classes.txt, with '
            'any colors, and have pixels of 2 or more in train, of 1 in val')
    if not checkpoint:
        notes += counted({'classes have no pixel in train': [
            x for i, x in enumerate(classes) if i not in numbers['train']]})
    palette = colors or np.random.default_rng(0).integers(
        0, 256, (len(classes), 3)).tolist()
    for split, dataset in find_datasets(cfg):
        pipeline = dataset.get('pipeline') or []
        dataset.clear()  # in place, inside of its wrappers
        dataset.update(
            type='mmengine.dataset.BaseDataset', data_root=str(root),
            ann_file=paths[split], test_mode=split == 'val',
            metainfo=dict(classes=classes, palette=palette),
            data_prefix=dict(img_path='', seg_map_path=''), pipeline=pipeline)
        _keep_numbers(pipeline)
    _keep_numbers(cfg.get('tta_pipeline'))
    for name in ('val_evaluator', 'test_evaluator'):
        given = cfg.get(name) or ()
        for node in [given] if isinstance(given, dict) else given:
            if type_name(node) == 'IoUMetric':
                node['type'] = 'mmvanilla.engine.own_masks.IoUByClass'
    set_in_place(cfg.model, len(classes))
    return notes


def _keep_numbers(node) -> None:
    """Remove options of ``LoadAnnotations`` that change numbers."""
    for child in node if isinstance(node, list | tuple) else ():
        if type_name(child) == 'LoadAnnotations':
            for key in {*child} - {'type'}:
                del child[key]
        _keep_numbers(child.get('transforms') if isinstance(child, dict)
                      else child)


def _read_classes(path: Path) -> tuple[list[str], list[tuple]]:
    """Names of classes, one in each line, and colors if there are any."""
    names, colors, number = [], [], r'[\s,:]+(\d+)'
    text = path.read_text('utf-8-sig', 'replace') if path.is_file() else ''
    for line in filter(None, map(str.strip, text.splitlines())):
        found = re.fullmatch(f'(.+?){number * 3}[\\s:]*', line)
        names.append(found[1] if found else line)
        colors += [tuple(map(int, found.groups()[1:]))] if found else []
    if '\ufffd' in text or len({*names}) < len(names) or len(
            {*colors}) not in (0, len(names)) or [
                x for x in chain(*colors) if x > 255]:
        raise UserError(f'--data: {path} must have in each line, in UTF-8, the'
                        ' name of a class and, for all or none, a color of '
                        'three numbers up to 255, none of them twice')
    return names, colors


def _find_pairs(root: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Masks by the images of the same names, for each split, and notes."""
    others, faults, splits = Counter(), defaultdict(list), {}
    for split in ('train', 'val'):
        images, masks = {}, {}
        for place, end, found in ((f'images/{split}', '', images),
                                  (f'masks/{split}', '.png', masks)):
            for path in find_images(root, others, [place] * os.path.isdir(
                    root / place)):
                name = os.path.splitext(path)[0].split('/', 1)[1]
                if name in found:
                    faults['files repeat a name, and are left out'
                           ].append(path)
                elif path.lower().endswith(end):
                    found[name] = path
        splits[split] = {images[x]: masks[x] for x in images if x in masks}
        for what, lone in (('images have no mask', {*images} - {*masks}),
                           ('masks have no image', {*masks} - {*images})):
            faults[f'{what} of the same name, and are left out'
                   ] += sorted(lone)
    if not (root / 'images/val').is_dir():
        splits['val'] = {x: splits['train'].pop(x) for x in sorted(
            hold_out([*splits['train']]))}
    return splits, counted(faults) + left_out(others)


def _read_masks(root: Path, pairs: dict[str, str], colors: list[tuple],
                cfg: Config) -> tuple[list[str], set[int]]:
    """Check masks; paths, of copies if they have colors, and numbers."""
    table, code = np.full(1 << 24, UNKNOWN, np.uint8), (1 << 16, 1 << 8, 1)
    table[-1] = IGNORED  # white
    for i, color in enumerate(colors):
        table[np.dot(color, code)] = i
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    folder = work_folder(cfg) / f'masks-{digest}' if colors else root

    def check(image: str) -> tuple[str, list[int]]:
        try:
            with Image.open(root / pairs[image]) as mask:
                pixels = np.asarray(mask.convert('RGB') if colors else mask)
        except Exception as e:  # of many kinds, by what is wrong
            return str(e), []
        if pixels.shape[1::-1] != read_size(root / image):
            return 'its size is not that of the image', []
        if not colors and (pixels.ndim > 2 or pixels.dtype.itemsize > 1):
            return 'not one number of 8 bits in each pixel', []
        if colors:
            labels = table[pixels @ code]
            if UNKNOWN in labels:
                color = pixels[labels == UNKNOWN][0].tolist()
                return f'classes.txt has no color {color}', []
            pixels, target = labels, folder / pairs[image]
            target.parent.mkdir(parents=True, exist_ok=True)
            with write_beside(target) as (part, ):
                Image.fromarray(pixels).save(part, 'PNG')
        return '', np.unique(np.uint8(pixels)).tolist()

    with ThreadPoolExecutor() as pool:
        found = dict(zip(pairs, track(pool.map(check, pairs),
                                      'checking masks', len(pairs))))
    wrong = [f'{pairs[x]} ({why})' for x, (why, _) in found.items() if why]
    if wrong:
        raise UserError(f'--data: {len(wrong)} masks of {root} cannot be used:'
                        f' {some(wrong)}')
    numbers = {*chain(*(x for _, x in found.values()))} - {IGNORED}
    return [str(folder / mask) for mask in pairs.values()], numbers
