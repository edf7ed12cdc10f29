# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config read a folder of images, as ``--data`` does."""
import logging
import os
from itertools import chain
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ..checkpoints import load_checkpoint
from ..datasets import image_folder
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
                     check_images: bool = False) -> None:
    """Make a classification config, in place, use a folder of images.

    The folder holds ``train`` and ``val``, each with a folder of images for
    each class, or the latter alone: then a fifth of each class is ``val``.
    With a ``checkpoint``, of a trained network to evaluate, the config gets
    its classes, and the folder may lack some of them, or ``train``.
    """
    if scope_name(cfg) != 'mmpretrain':
        raise UserError(f'--data is for classification, but {cfg.filename} is '
                        f'for {scope_name(cfg)}')
    check_parts(cfg, '--data', 'model')
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f'--data: no folder {root}')
    evaluates = checkpoint is not None
    splits = _read_splits(root, evaluates)
    classes = list(splits['val'])
    if evaluates:
        meta = load_checkpoint(checkpoint).get('meta') or {}
        classes = list((meta.get('dataset_meta') or {}).get('classes') or ())
        if not classes:
            raise UserError(f'--data: {checkpoint} does not hold the names of '
                            'its classes, which the folders are compared with')
    problem = _find_problem(splits, classes, evaluates)
    if problem:
        raise UserError(f'--data: {root} {problem}')
    images = {x: {*chain(*splits[x].values())} for x in splits}
    everything = sorted(set().union(*images.values()))
    skip = {*(image_folder.unreadable(root, everything)
              if check_images else ())}
    if skip:
        print_log(f'{len(skip)} of {len(everything)} images are unreadable '
                  f'and are left out: {some(sorted(skip))}', 'current',
                  logging.WARNING)
    if not evaluates:
        _check_batch(cfg, len(images['train'] - skip))
    elif len(images['val']) < len(everything):
        print_log(f'{len(images["val"])} of {len(everything)} images, those '
                  f'for validation, are used of {root}', 'current')
    for name, split in dict(train='train', val='val', test='val').items():
        loader = cfg.get(f'{name}_dataloader')
        if not loader or split not in splits:
            continue
        dataset = unwrap_dataset(loader.dataset)
        if 'datasets' in dataset:
            raise UserError(f'--data replaces one data set, but {name}_'
                            f'dataloader has a {type_name(dataset)}')
        pipeline = with_loading(dataset, image_channels(cfg))
        dataset.clear()  # in place, inside of its wrappers
        dataset.update(
            type='ImageFolderDataset', data_root=str(root), split=split,
            metainfo=dict(classes=classes), pipeline=pipeline,
            skip=sorted(skip & images[split]))
    set_num_classes(cfg, len(classes))
    imports = (cfg.get('custom_imports') or {}).get('imports', [])
    if 'mmvanilla' not in imports:
        cfg.custom_imports = dict(
            imports=[*imports, 'mmvanilla'], allow_failed_imports=False)


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


def _read_splits(root: Path, evaluates: bool) -> dict:
    found = image_folder.split_folders(root)
    names = ['train', 'val']
    if found and evaluates and 'train' not in found:
        names = ['val']
    if found and not {*names} <= {*found}:
        raise UserError(f'--data: {root} must hold both train and val, or '
                        f'neither, but holds {some(found, 6)}')
    return {name: image_folder.read_split(root, name) for name in names}


def _find_problem(splits: dict, classes: list, evaluates: bool) -> str | None:
    found = sorted(set().union(*splits.values()))
    unknown = [x for x in found if evaluates and x not in classes]
    if unknown:
        return (f'holds {some(unknown)}, which the network was not trained '
                f'for; its classes are {some(classes, 6)}')
    if len(found) < (1 if evaluates else 2):
        return ('must hold two or more folders of images, one for each class, '
                f'but holds {some(found) or "none"}')
    for split in ['val'] if evaluates else splits:
        wanted = splits['val'] if evaluates else found
        empty = [x for x in wanted if not splits[split].get(x)]
        if empty:
            return (f'holds no image of {some(empty)} for {split}: each class '
                    'needs one for train and one for val, with a name that '
                    f'ends in {", ".join(image_folder.SUFFIXES)}')
    return None


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
