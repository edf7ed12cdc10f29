# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Data sets that are a folder with one folder of images for each class."""
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..utils.errors import UserError
from ..utils.terminal import some, track

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm',
            '.pgm')


def find_images(folder: Path) -> list[str]:
    """Paths, relative to ``folder``, of all images below it, sorted."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != '.']
        found += [
            Path(parent, name).relative_to(folder).as_posix()
            for name in files
            if name[0] != '.' and name.lower().endswith(SUFFIXES)
        ]
    return sorted(found)


def find_classes(folder: Path) -> dict[str, list[str]]:
    """Sorted images of each class, relative to ``folder``, by class name."""
    names = sorted(p.name for p in folder.iterdir()
                   if p.is_dir() and p.name[0] != '.')
    return {
        name: [f'{name}/{image}' for image in find_images(folder / name)]
        for name in names
    }


def read_split(root: Path, split: str, seed: int = 0) -> dict[str, list[str]]:
    """The images of one split, for each class.

    ``root`` holds either ``train`` and ``val``, each with a folder of images
    for each class, or the folders of the classes. In the second case a fifth
    of each class, at least one image, is held out for ``val``. It is chosen
    by a hash of the seed and the file name, and does not depend on the order
    of the files.

    Args:
        root (Path): The folder.
        split (str): 'train' or 'val'.
        seed (int): Chooses what is held out. Defaults to 0.

    Returns:
        dict[str, list[str]]: Paths relative to ``root``, by class.
    """
    if has_splits(root):
        classes = find_classes(root / split)
        return {
            name: [f'{split}/{image}' for image in images]
            for name, images in classes.items()
        }
    chosen = {}
    for name, images in find_classes(root).items():
        ranked = sorted(
            images,
            key=lambda x: hashlib.sha256(f'{seed}/{x}'.encode()).digest())
        held_out = set(ranked[:max(1, round(len(images) / 5))])
        chosen[name] = [
            x for x in images if (x in held_out) == (split == 'val')
        ]
    return chosen


def has_splits(root: Path) -> bool:
    """Whether ``root`` holds ``train`` or ``val`` instead of classes."""
    return (root / 'train').is_dir() or (root / 'val').is_dir()


def unreadable(root: Path, images: Sequence[str]) -> list[str]:
    """Decode every image and return those that cannot be decoded."""
    with ThreadPoolExecutor() as pool:
        fine = track(
            pool.map(lambda x: decode(root / x) is not None, images),
            'checking images', len(images))
        return [image for image, is_fine in zip(images, fine) if not is_fine]


def decode(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Decode an image as OpenMMLab does: (H, W, 3) BGR; None if it fails."""
    try:
        # Not cv2.imread, which fails on some names that are not ASCII.
        return cv2.imdecode(np.fromfile(path, np.uint8), flag)
    except (OSError, cv2.error):
        return None


@DATASETS.register_module()
class ImageFolderDataset(BaseDataset):
    """Images in one folder for each class.

    In training, an image that cannot be read is replaced by another one, with
    a warning. In evaluation it is an error.

    Args:
        data_root (str): The folder. It holds either ``train`` and ``val``,
            each with a folder for each class, or the folders of the classes,
            of whose images a fifth is then held out for 'val'.
        split (str): 'train' or 'val'.
        metainfo (dict): ``classes``, the names of the classes in the order of
            their labels. A class without a folder has no images.
        skip (Sequence[str]): Images to leave out, relative to ``data_root``.
            Defaults to ().
        seed (int): Chooses what is held out. Defaults to 0.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        UserError: If there is no such folder, ``split`` is another, the
            folder holds a class that ``metainfo`` does not name, or, in
            evaluation, an image cannot be read.

    Example:
        >>> dataset = dict(
        ...     type='ImageFolderDataset', data_root='photos', split='train',
        ...     metainfo=dict(classes=['cat', 'dog']), pipeline=train_pipeline)
    """

    def __init__(self,
                 data_root: str,
                 split: str,
                 metainfo: dict,
                 skip: Sequence[str] = (),
                 seed: int = 0,
                 **kwargs) -> None:
        if split not in ('train', 'val'):
            raise UserError("ImageFolderDataset's split must be 'train' or "
                            f"'val', but got {split!r}")
        self.split = split
        self.skip = frozenset(skip)
        self.seed = seed
        self.warned = set()
        super().__init__(
            ann_file='',
            data_root=data_root,
            metainfo=metainfo,
            test_mode=kwargs.pop('test_mode', split == 'val'),
            **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images of the split, class by class."""
        root = Path(self.data_root).expanduser()
        folder = root / self.split if has_splits(root) else root
        if not folder.is_dir():
            raise UserError(f'no folder {folder}: it should hold one folder '
                            'of images for each class')
        labels = self.class_to_idx
        data_list = []
        for name, images in read_split(root, self.split, self.seed).items():
            if name not in labels:
                raise UserError(f'{folder} holds the class {name}, which is '
                                f'not one of {some(list(labels), 6)}')
            data_list += [
                dict(img_path=str(root / image), gt_label=labels[name])
                for image in images if image not in self.skip
            ]
        return data_list

    def prepare_data(self, idx: int) -> dict | None:
        """Run an image through the pipeline; None if it cannot be read."""
        try:
            return super().prepare_data(idx)
        except Exception:
            path = Path(self.get_data_info(idx)['img_path'])
            if decode(path) is not None:
                raise
            message = f'cannot read the image {path}'
        if self.test_mode:
            raise UserError(f'{message}: remove it, or let --check-images '
                            'find all such images and leave them out')
        if path not in self.warned:
            self.warned.add(path)
            print_log(f'{message}: another one takes its place',
                      'current', logging.WARNING)
        return None
