# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config read a folder of images, as ``--data`` does."""
import math
import re
from collections import Counter
from itertools import chain
from pathlib import Path

from mmengine.config import Config

from ..checkpoints import load_checkpoint
from ..datasets import image_files, image_folder
from ..utils.configs import (
    TOOLBOXES,
    check_parts,
    image_channels,
    scope_name,
    type_name,
    unwrap_dataset,
)
from ..utils.errors import UserError
from ..utils.files import is_exported
from ..utils.terminal import some


def use_data(cfg: Config, folder: str, checkpoint: str | None = None,
             check_images: bool = False, balance: bool = False) -> list[str]:
    """Make a config, in place, use a folder of images, boxes or masks.

    With a ``checkpoint`` to evaluate, it gets the classes of that. Warnings
    are returned, since there is no log file yet.
    """
    scope = scope_name(cfg)
    if scope not in TOOLBOXES:
        raise UserError(f'--data is for configs of {", ".join(TOOLBOXES)}, '
                        f'but {cfg.filename} is for {scope}')
    check_parts(cfg, '--data', 'model')
    from .own_boxes import use_box_folder, work_folder
    work, root = work_folder(cfg).resolve(), Path(folder).expanduser()
    if work.is_relative_to(root.resolve()):
        raise UserError(f'--data: the work dir {work} is inside of {root}, '
                        'where its pictures become data: use another one')
    if scope == 'mmpretrain':
        return use_image_folder(cfg, folder, checkpoint, check_images, balance)
    if not root.is_dir():
        raise UserError(f'--data: there is no folder {root}')
    if balance:
        raise UserError('--balance is for classification, but '
                        f'{cfg.filename} is for {scope}')
    if scope == 'mmdet':
        return use_box_folder(cfg, folder, checkpoint, check_images)
    from .own_masks import use_mask_folder
    return use_mask_folder(cfg, folder, checkpoint, check_images)


def use_image_folder(cfg: Config, folder: str, checkpoint: str | None = None,
                     check_images: bool = False, balance: bool = False
                     ) -> list[str]:
    """Make a classification config, in place, use a folder of images."""
    root, datasets = Path(folder).expanduser().absolute(), find_datasets(cfg)
    evaluates, others = checkpoint is not None, Counter()
    used = ['val'] if evaluates else ['train', 'val']
    splits = image_folder.read_splits(root, 0, others, used)
    classes = sorted({*splits['train'], *splits['val']})
    if evaluates:
        others['for training'] += sum(map(len, splits['train'].values()))
        classes = [*map(image_folder.class_name, trained_classes(checkpoint))]
    skip, notes = set(), image_folder.left_out(others)
    # OpenCV, with which they are checked, may read others differently.
    if not re.search('imdecode_backend|unchanged', str(datasets)):
        skip, more = image_files.find_unreadable(root, sorted(chain(*(
            x for split in used for x in splits[split].values()))),
            check_images)
        notes += more
    for split in splits.values():
        for name, images in split.items():
            split[name] = [x for x in images if x not in skip]
    _check_classes(root, {x: splits[x] for x in used}, classes, notes)
    for split, dataset in datasets:
        if splits[split]:
            pipeline = with_loading(dataset, image_channels(cfg))
            dataset.clear()  # in place, inside of its wrappers
            dataset.update(
                type='ImageFolderDataset', data_root=str(root), split=split,
                metainfo=dict(classes=classes), pipeline=pipeline,
                skip=sorted(skip))
    if balance:
        notes.append(_balance(cfg, [*map(len, splits['train'].values())]))
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


def trained_classes(checkpoint: str) -> list[str]:
    """The names of the classes of a checkpoint, or of an exported file."""
    if is_exported(checkpoint):
        from ..export import read_metadata
        names = read_metadata(checkpoint)['labels']
    else:
        meta = load_checkpoint(checkpoint).get('meta') or {}
        names = (meta.get('dataset_meta') or {}).get('classes')
    if not names:
        raise UserError(f'--data: {checkpoint} does not hold the names of its '
                        'classes, with which those of the data are compared')
    return [*names]


def set_num_classes(cfg: Config, number: int) -> None:
    """Set the number of classes wherever a classification config has it."""
    for part in ('model', 'data_preprocessor', 'train_dataloader',
                 'val_evaluator', 'test_evaluator'):
        set_in_place(cfg.get(part), number)
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


def find_datasets(cfg: Config) -> list[tuple[str, dict]]:
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


def _check_classes(root: Path, splits: dict, classes: list[str],
                   notes: list[str]) -> None:
    """Refuse folders that the network cannot be trained or tested with."""
    found, problem = sorted({*chain(*splits.values())}), None
    unknown, folders = {*found} - {*classes}, image_folder.find_folders(root)
    if unknown:
        problem = (f'holds {some(sorted(unknown))}, which the network was not '
                   f'trained for; its classes are {some(classes, 6)}')
    elif len(found) < len(splits):  # two to train
        problem = ('must hold two or more folders of images, one for each '
                   f'class, but holds {some(found) or "none"}')
        if len(folders) == 1 and image_folder.find_folders(root / folders[0]):
            problem += f': did you mean {root / folders[0]}?'
    for split, images in splits.items():
        empty = [x for x in found if not images.get(x)]
        if empty and not problem:
            problem = (
                f'holds no image of {some(empty)} for {split}: each class '
                'needs one for train and one for val, which is held out of '
                'two or more where there is no folder val; names end in '
                f'{", ".join(image_files.SUFFIXES)}')
    if problem:
        raise UserError('; '.join([f'--data: {root} {problem}', *notes]))


def _balance(cfg: Config, counts: list[int]) -> str:
    """Repeat images of classes that have less than half of the largest."""
    largest = max(counts)
    dataset = unwrap_dataset(cfg.train_dataloader.dataset)
    inner = dict(dataset)
    dataset.clear()
    dataset.update(type='ClassBalancedDataset', dataset=inner,
                   oversample_thr=largest / 2 / sum(counts))
    # As the wrapper counts.
    after = [n * math.ceil(max(1, largest / 2 / n)**0.5) for n in counts]
    return (f'--balance: classes of {min(counts)} to {largest} images become '
            f'{min(after)} to {max(after)} by repeating some')


def set_in_place(node, number: int) -> None:
    """Set the number of classes wherever a part of a config has it."""
    if isinstance(node, (list, tuple)):
        for child in node:
            set_in_place(child, number)
    elif isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = number
        if isinstance(node.get('topk'), (list, tuple)):
            node['topk'] = [k for k in node['topk'] if k < number] or [1]
        for child in node.values():
            set_in_place(child, number)
