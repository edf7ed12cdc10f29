# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The data of configs: what is missing, batches, names of classes."""
import copy
import os.path as osp

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import Runner

from .building import image_channels, scope_of
from .config_options import type_name
from .errors import UserError

# Data sets whose layout is known: the end of the sentence about missing data.
LAYOUTS = dict.fromkeys(
    ('ImageNet', 'CustomDataset'),
    ', with one folder of images for each class') | dict.fromkeys(
        ('CocoDataset', 'ADE20KDataset', 'BaseSegDataset'), '')


def missing_data(dataset: dict) -> str | None:
    """Describe missing files of a data set whose layout is known.

    Other data sets may download their files, or report missing ones
    themselves.

    Args:
        dataset (dict): The config of a data set, or of a wrapper around one.

    Returns:
        str | None: A sentence with the folder and what it must hold; None if
        no files are known to be missing.
    """
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is not None:
        inner = inner if isinstance(inner, (list, tuple)) else [inner]
        return next(filter(None, map(missing_data, inner)), None)
    name = type_name(dataset)
    if name not in LAYOUTS:
        return None

    root = osp.expanduser(dataset.get('data_root') or '')
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img_path=prefixes)
    parts = [p for p in prefixes.values() if isinstance(p, str) and p]
    if dataset.get('ann_file'):
        parts.append(dataset['ann_file'])
    elif root and not parts and dataset.get('split'):
        parts.append(dataset['split'])
    # Files on a server are not checked.
    paths = [osp.join(root, part) for part in parts] or [root]
    if all(osp.exists(path) for path in paths if path and '://' not in path):
        return None
    return (f'no data for {name}: looked for the folder {root or "."}, which '
            f'must hold {" and ".join(parts) or "the images"}{LAYOUTS[name]}')


def check_data(cfg: Config, *loaders: str) -> None:
    """Refuse a config whose data is missing.

    Args:
        cfg (Config): A config.
        *loaders (str): Names of its data loaders, as ``train_dataloader``.

    Raises:
        UserError: If files are missing; names the folder.
    """
    for loader in loaders:
        if cfg.get(loader) and isinstance(cfg[loader].get('dataset'), dict):
            problem = missing_data(cfg[loader].dataset)
            if problem:
                raise UserError(problem)


def real_batches(cfg: Config,
                 samples: int,
                 split: str = 'val') -> list[dict] | None:
    """Read the first samples of one of a config's data sets.

    Args:
        cfg (Config): A config.
        samples (int): How many samples to read, at most.
        split (str): 'train', 'val' or 'test'. Defaults to 'val'.

    Returns:
        list[dict] | None: Batches as the data loader yields them, for
        ``model.data_preprocessor``; None if the config has no such data or
        its files are missing.

    Raises:
        UserError: If the data set is empty, or the loader cannot be built.
    """
    loader = copy.deepcopy(cfg.get(f'{split}_dataloader') or {})
    if not loader.get('dataset') or missing_data(loader.dataset):
        return None
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)  # invalid without workers
    if loader.get('batch_size'):
        loader.batch_size = min(loader.batch_size, samples)
    with scope_of(cfg):
        try:
            dataloader = Runner.build_dataloader(loader, seed=0)
        except FileNotFoundError:
            return None
        except ValueError as e:
            raise UserError(f'cannot build the {split} data loader of '
                            f'{cfg.filename}: {e}') from e
        batches = []
        for batch in dataloader:
            batches.append(batch)
            samples -= len(batch['inputs'])
            if samples <= 0:
                break
    if not batches:
        raise UserError(f'the {split} data of {cfg.filename} are empty')
    return batches


def random_batches(cfg: Config, samples: int) -> list[dict]:
    """Run random images through a config's test pipeline.

    Args:
        cfg (Config): A config.
        samples (int): Number of images, uint8 of 224 x 224 pixels.

    Returns:
        list[dict]: Batches of one image, for ``model.data_preprocessor``. The
        same call returns the same images.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = unwrap_dataset(loader.get('dataset') or {})
    # There are no files of images and no annotations to load.
    transforms = [
        t for t in dataset.get('pipeline', [])
        if not type_name(t).startswith('Load')
    ]
    rng = np.random.default_rng(0)
    channels = image_channels(cfg)
    batches = []
    with scope_of(cfg):
        pipeline = Compose([TRANSFORMS.build(t) for t in transforms])
        for i in range(samples):
            image = rng.integers(0, 256, (224, 224, channels), np.uint8)
            if not transforms:
                inputs = torch.from_numpy(image).permute(2, 0, 1)
                batches.append(dict(inputs=[inputs]))
                continue
            results = pipeline(
                dict(
                    img=image,
                    img_id=i,
                    img_path='',
                    img_shape=image.shape[:2],
                    ori_shape=image.shape[:2]))
            batches.append(pseudo_collate([results]))
    return batches


def unwrap_dataset(dataset: dict) -> dict:
    """The config of a data set without its wrappers, as RepeatDataset."""
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def class_names(cfg: Config, meta: dict) -> list[str]:
    """The names of the classes that a network predicts.

    Args:
        cfg (Config): Its config.
        meta (dict): The ``meta`` of its checkpoint.

    Returns:
        list[str]: Those of the checkpoint, else of the config's data sets;
        empty where neither names them.
    """
    trained = meta.get('dataset_meta') or meta
    names = trained.get('classes') or trained.get('CLASSES')
    for split in ('val', 'test', 'train'):
        loader = cfg.get(f'{split}_dataloader') or {}
        dataset = unwrap_dataset(loader.get('dataset') or {})
        if names or not dataset:
            continue
        kind = dataset.get('type')
        if isinstance(kind, str):  # not the class itself, as in new configs
            with scope_of(cfg):
                kind = DATASETS.get(kind)
        names = (dataset.get('metainfo') or {}).get('classes') or (
            getattr(kind, 'METAINFO', {}).get('classes'))
    return [str(name) for name in names or ()]
