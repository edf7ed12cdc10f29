# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config read a folder of images, as ``--data`` does."""
import math
import os
from collections import Counter
from itertools import chain
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ..checkpoints import load_checkpoint
from ..datasets import image_files, image_folder
from ..utils.configs import (
    check_parts,
    image_channels,
    scope_name,
    type_name,
    unwrap_dataset,
)
from ..utils.errors import UserError
from ..utils.terminal import some

# Where each launcher says how many processes it started.
WORLD_SIZE = dict(
    pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')


def use_image_folder(cfg: Config, folder: str, checkpoint: str | None = None,
                     check_images: bool = False, balance: bool = False
                     ) -> list[str]:
    """Make a classification config, in place, use a folder of images.

    The folder holds ``train`` and ``val``, each with a folder of images for
    each class, or the latter alone: then a fifth of each class is ``val``.
    With a ``checkpoint``, of a trained network to evaluate, the config gets
    its classes, and the folder may lack some of them, or ``train``. Warnings
    are returned, since there is no log file yet.
    """
    if scope_name(cfg) != 'mmpretrain':
        raise UserError(f'--data is for classification, but {cfg.filename} is '
                        f'for {scope_name(cfg)}')
    check_parts(cfg, '--data', 'model')
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f'--data: no folder {root}')
    evaluates, datasets = checkpoint is not None, _find_datasets(cfg)
    splits, notes = _read_splits(root, evaluates)
    classes = sorted(splits['val'])
    if evaluates:
        meta = load_checkpoint(checkpoint).get('meta') or {}
        names = (meta.get('dataset_meta') or {}).get('classes') or ()
        classes = [*map(image_folder.class_name, names)]
        if not classes:
            raise UserError(f'--data: {checkpoint} does not hold the names of '
                            'its classes, which the folders are compared with')
    _check_classes(root, splits, classes, evaluates, notes)
    skip = set()
    if all(_reads_with_opencv(dataset) for _, dataset in datasets):
        used = [splits['val']] if evaluates else splits.values()
        skip, more = image_files.find_unreadable(root, sorted(
            chain(*(x for split in used for x in split.values()))),
            check_images)
        notes += more
    for split in splits.values():
        for name, images in split.items():
            split[name] = [x for x in images if x not in skip]
    _check_classes(root, splits, classes, evaluates, notes)
    counts = {x: [*map(len, splits[x].values())] for x in splits}
    train, val = sum(counts['train']), sum(counts['val'])
    if not evaluates:
        _check_batch(cfg, train)
    elif train:
        print_log(f'{val} of {train + val} images, those for validation, are '
                  f'used of {root}', 'current')
    for split, dataset in datasets:
        if splits[split]:
            pipeline = with_loading(dataset, image_channels(cfg))
            dataset.clear()  # in place, inside of its wrappers
            dataset.update(
                type='ImageFolderDataset', data_root=str(root), split=split,
                metainfo=dict(classes=classes), pipeline=pipeline,
                skip=sorted(skip))
    if balance:
        notes.append(_balance(cfg, counts['train']))
    set_num_classes(cfg, len(classes))
    for node in (cfg, cfg.model) if image_channels(cfg) == 1 else ():
        found = node.get('data_preprocessor') or {}
        for key in {'mean', 'std'} & {*found}:  # of grey images
            found[key] = [sum(found[key]) / len(found[key])]
    imports = (cfg.get('custom_imports') or {}).get('imports', [])
    if 'mmvanilla' not in imports:
        cfg.custom_imports = dict(
            imports=[*imports, 'mmvanilla'], allow_failed_imports=False)
    return notes


def set_num_classes(cfg: Config, number: int) -> None:
    """Set the number of classes wherever a classification config has it."""
    for part in ('model', 'data_preprocessor', 'train_dataloader',
                 'val_evaluator', 'test_evaluator'):
        _set_in_place(cfg.get(part), number)
    # The preprocessor turns labels into scores for batch augmentations.
    node = cfg.model if cfg.model.get('data_preprocessor') else cfg
    node.data_preprocessor = dict(
        node.get('data_preprocessor') or {}, num_classes=number)


def with_loading(dataset: dict, channels: int) -> list:
    """A data set's pipeline, which starts by loading an image."""
    transforms = list(dataset.get('pipeline') or [])
    if not transforms or not type_name(transforms[0]).startswith('Load'):
        transforms.insert(0, dict(type='LoadImageFromFile'))
    if channels == 1 and 'color_type' not in transforms[0]:
        transforms[0] = dict(transforms[0], color_type='grayscale')
    return transforms


def _reads_with_opencv(dataset: dict) -> bool:
    load = with_loading(dataset, 3)[0]
    return (type_name(load) == 'LoadImageFromFile'
            and load.get('imdecode_backend', 'cv2') == 'cv2'
            and load.get('color_type', 'color') in ('color', 'grayscale'))


def _find_datasets(cfg: Config) -> list[tuple[str, dict]]:
    """The splits and configs of the data sets to replace."""
    found = []
    for name in ('train', 'val', 'test'):
        outer = (cfg.get(f'{name}_dataloader') or {}).get('dataset') or {}
        inner = unwrap_dataset(outer)
        if 'datasets' in inner or type_name(outer) == 'KFoldDataset':
            raise UserError(
                f'--data replaces one data set, but {name}_dataloader has a '
                f'{type_name(inner if "datasets" in inner else outer)}')
        if outer:
            found.append(('train' if name == 'train' else 'val', inner))
    return found


def _read_splits(root: Path, evaluates: bool) -> tuple[dict, list[str]]:
    """The images by split and class, and a line on what is left out."""
    found, others = image_folder.find_splits(root), Counter()
    wanted = ['val'] if evaluates else ['train', 'val']
    if found and any(len(found.get(x, ())) != 1 for x in wanted):
        hints = [f'to hold out a fifth of {root / x}, give that; '
                 for x in found.get('train', ())[:1]]
        raise UserError(
            f'--data: {root} must hold both train and val, or neither, but '
            f'holds {some(image_folder.find_folders(root), 6)}: '
            f'{"".join(hints)}if they are classes, move them into folders '
            'train and val')
    splits = image_folder.read_splits(root, others=others)
    for name, images in {} if found else splits['train'].items():
        inside = {x.split('/')[1] for x in images + splits['val'][name]
                  if x.count('/') > 1}
        words = filter(None, map(image_folder.SPLIT.fullmatch, inside))
        if len({x.lastgroup for x in words}) > 1 < len(splits['train']):
            raise UserError(f'--data: {root / name} holds splits, which '
                            f'belong above the classes, as in train/{name}')
    return splits, [f'Files of {root} that are left out: '
                    f'{image_folder.list_counts(others)}'] * bool(others)


def _check_classes(root: Path, splits: dict, classes: list, evaluates: bool,
                   notes: list[str]) -> None:
    found, known = sorted({*splits['train'], *splits['val']}), {*classes}
    unknown = [x for x in found if evaluates and x not in known]
    problem, folders = None, image_folder.find_folders(root)
    if unknown:
        problem = (f'holds {some(unknown)}, which the network was not trained '
                   f'for; its classes are {some(classes, 6)}')
    elif len(found) < (1 if evaluates else 2):
        problem = ('must hold two or more folders of images, one for each '
                   f'class, but holds {some(found) or "none"}')
        if len(folders) == 1 and image_folder.find_folders(root / folders[0]):
            problem += f': did you mean {root / folders[0]}?'
    for split in ['val'] if evaluates else splits:
        wanted = splits['val'] if evaluates else found
        empty = [x for x in wanted if not splits[split].get(x)]
        if empty and not problem:
            problem = (
                f'holds no image of {some(empty)} for {split}: each class '
                'needs one for train and one for val, with a name that ends '
                f'in {", ".join(image_files.SUFFIXES)}')
    if problem:
        raise UserError('; '.join([f'--data: {root} {problem}', *notes]))


def _balance(cfg: Config, counts: list[int]) -> str:
    """Wrap the training set to repeat images of small classes."""
    def repeated(threshold):
        return [n * math.ceil(max(1, threshold / n)**0.5) for n in counts]

    # The wrapper rounds up: of two classes of 100 and 99 images, a threshold
    # of 100 would double one. No quotient is to be a whole number.
    sizes = [x - 0.5 for x in sorted({*counts})]
    threshold = min(sizes[::-(-len(sizes) // 100)], key=lambda x: (
        max(repeated(x)) / min(repeated(x))))
    dataset = unwrap_dataset(cfg.train_dataloader.dataset)
    inner = dict(dataset)
    dataset.clear()
    dataset.update(type='ClassBalancedDataset', dataset=inner,
                   oversample_thr=threshold / sum(counts))
    after = repeated(threshold)
    return (f'--balance: classes of {min(counts)} to {max(counts)} images '
            f'become {min(after)} to {max(after)} by repeating some')


def _check_batch(cfg: Config, count: int) -> None:
    loader = cfg.get('train_dataloader') or {}
    if 'dataset' in loader.get('dataset', {}):  # a wrapper may repeat images
        return
    # torch.distributed is not initialized yet.
    ranks = int(os.environ.get(
        WORLD_SIZE.get(cfg.get('launcher'), ''), get_world_size()))
    size = loader.get('batch_size', 1)
    if count < size * ranks:
        raise UserError(
            f'--data: {count} images for training are fewer than a batch of '
            f'{size}{f" x {ranks}" if ranks > 1 else ""}: use a smaller one, '
            'as in --cfg-options '
            f'train_dataloader.batch_size={max(2, count // ranks // 4)}')


def _set_in_place(node, number: int) -> None:
    if isinstance(node, (list, tuple)):
        for child in node:
            _set_in_place(child, number)
    elif isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = number
        if isinstance(node.get('topk'), (list, tuple)):
            node['topk'] = [k for k in node['topk'] if k < number] or [1]
        for child in node.values():
            _set_in_place(child, number)
