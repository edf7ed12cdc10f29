# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config read a folder of images, as ``--data`` does."""
import logging
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ..checkpoints import load_checkpoint
from ..datasets.image_folder import (
    SUFFIXES,
    has_splits,
    read_split,
    unreadable,
)
from ..utils.building import image_channels
from ..utils.config_options import check_parts, scope_name, type_name
from ..utils.data import unwrap_dataset
from ..utils.errors import UserError
from ..utils.terminal import some


def use_image_folder(cfg: Config,
                     folder: str,
                     checkpoint: str | None = None,
                     check_images: bool = False) -> None:
    """Make a classification config train and evaluate on a folder of images.

    The classes are the names of the folders, sorted. Their number is set in
    the head, the preprocessor, batch augmentations and metrics. A top-k
    accuracy is left out where k is not below the number of classes. The
    resulting config is complete: it needs no ``--data``.

    Args:
        cfg (Config): The config, changed in place.
        folder (str): A folder with ``train`` and ``val``, each with one
            folder of images for each class, or with the latter alone: then a
            fifth of each class is held out for ``val``.
        checkpoint (str, optional): A trained network to evaluate. The config
            gets its classes, and the folder may lack some of them, or
            ``train``. Defaults to None: the config is for training.
        check_images (bool): Whether to decode all images first and to leave
            out those that are unreadable. Defaults to False.

    Raises:
        UserError: If the config is not for classification, the folder is not
            as described above, it holds fewer images than a batch, or the
            checkpoint does not name its classes.
    """
    scope = scope_name(cfg)
    if scope != 'mmpretrain':
        raise UserError(f'--data is for classification, but {cfg.filename} is '
                        f'for {scope}')
    check_parts(cfg, '--data', 'model')
    root = Path(folder).expanduser().absolute()
    evaluates = checkpoint is not None
    splits = _read_splits(root, folder, evaluates)
    classes = (_trained_classes(checkpoint)
               if evaluates else list(splits['train']))
    _check_classes(root, classes, splits, evaluates)

    skip = set()
    if check_images:
        images = sorted(set().union(*map(_images, splits.values())))
        skip = set(unreadable(root, images))
        if skip:
            print_log(f'{len(skip)} of {len(images)} images are unreadable '
                      f'and are left out: {some(sorted(skip))}', 'current',
                      logging.WARNING)
    if 'train' in splits and not evaluates:
        _check_batch(cfg, len(_images(splits['train']) - skip))

    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        split = 'train' if name == 'train' else 'val'
        if not loader or split not in splits:
            continue
        loader.dataset = ConfigDict(
            type='ImageFolderDataset',
            data_root=str(root),
            split=split,
            metainfo=dict(classes=classes),
            skip=sorted(skip & _images(splits[split])),
            pipeline=_pipeline(loader.dataset, image_channels(cfg)))
    set_num_classes(cfg, len(classes))
    imports = cfg.get('custom_imports') or dict(imports=[])
    if 'mmvanilla' not in imports['imports']:
        cfg.custom_imports = dict(
            imports=[*imports['imports'], 'mmvanilla'],
            allow_failed_imports=False)


def set_num_classes(cfg: Config, number: int) -> None:
    """Set the number of classes wherever a classification config has it.

    Args:
        cfg (Config): The config, changed in place.
        number (int): How many classes.
    """
    for part in ('model', 'data_preprocessor', 'train_dataloader',
                 'val_evaluator', 'test_evaluator'):
        _set_in_place(cfg.get(part), number)
    # The preprocessor turns labels into scores for batch augmentations.
    if cfg.model.get('data_preprocessor'):
        cfg.model.data_preprocessor.num_classes = number
    else:
        cfg.setdefault('data_preprocessor', ConfigDict())
        cfg.data_preprocessor.num_classes = number


def _trained_classes(checkpoint: str) -> list[str]:
    meta = load_checkpoint(checkpoint).get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if not classes:
        raise UserError(f'--data: {checkpoint} does not hold the names of its '
                        'classes, which the folders are compared with')
    return list(classes)


def _read_splits(root: Path, folder: str, evaluates: bool) -> dict:
    if not root.is_dir():
        raise UserError(f'--data: no folder {folder}')
    names = ['train', 'val']
    if has_splits(root):
        missing = [x for x in names if not (root / x).is_dir()]
        if missing and not (evaluates and missing == ['train']):
            found = sorted(x.name for x in root.iterdir() if x.is_dir())
            raise UserError(
                f'--data: {folder} must hold both train and val, or neither, '
                f'but holds {some(found, 6)}')
        names = [x for x in names if x not in missing]
    return {name: read_split(root, name) for name in names}


def _images(classes: dict) -> set:
    return {image for images in classes.values() for image in images}


def _check_classes(root: Path, classes: list, splits: dict,
                   evaluates: bool) -> None:
    found = sorted(set().union(*splits.values()))
    unknown = sorted(set(found) - set(classes))
    if evaluates and unknown:
        raise UserError(
            f'--data: {root} holds {some(unknown)}, which the network was not '
            f'trained for; its classes are {some(classes, 6)}')
    if not evaluates and len(found) < 2:
        raise UserError(
            f'--data: {root} must hold two or more folders of images, one for '
            f'each class, but holds {some(found) or "none"}')
    for here, there in (('val', 'train'), ('train', 'val')):
        if not evaluates:
            only = [x for x in splits[here] if x not in splits[there]]
            if only:
                raise UserError(f'--data: {root / here} holds {some(only)}, '
                                f'which {root / there} does not')
    if has_splits(root):
        empty = [f'{split}/{name}' for split, c in splits.items()
                 for name, images in c.items() if not images]
    else:
        empty = [x for x in found if not any(s[x] for s in splits.values())]
        alone = [x for x in found if x not in empty and not splits['train'][x]]
        if alone and not evaluates:
            raise UserError(f'--data: {root} holds one image of '
                            f'{some(alone)}, but two or more are needed, one '
                            'of them for validation')
    if empty:
        raise UserError(f'--data: no images in {some(empty)} of {root}, where '
                        f'names must end in {", ".join(SUFFIXES)}')


def _check_batch(cfg: Config, count: int) -> None:
    loader = cfg.get('train_dataloader') or {}
    # torch.distributed is not initialized yet; the launcher sets WORLD_SIZE.
    ranks = max(get_world_size(), int(os.environ.get('WORLD_SIZE', 1)))
    size = loader.get('batch_size', 1)
    if count // ranks < size:
        batch = f'{size}' + (f' x {ranks}' if ranks > 1 else '')
        raise UserError(
            f'--data: {count} images for training are fewer than a batch of '
            f'{batch}: take a smaller one, as in --cfg-options '
            f'train_dataloader.batch_size={max(2, count // ranks // 4)}')


def _pipeline(dataset: dict, channels: int) -> list:
    transforms = list(unwrap_dataset(dataset).get('pipeline') or [])
    if not transforms or not type_name(transforms[0]).startswith('Load'):
        transforms.insert(0, dict(type='LoadImageFromFile'))
    if channels == 1 and 'color_type' not in transforms[0]:
        transforms[0] = dict(transforms[0], color_type='grayscale')
    return transforms


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
