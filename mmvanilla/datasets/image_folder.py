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
# Names, in any case, of folders that are splits instead of classes.
SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'test', 'testing')
# Folders that operating systems and archivers make.
IGNORED = ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information',
           'lost+found')


def _is_visible(name: str) -> bool:
    return name[0] != '.' and name not in IGNORED


def find_images(folder: Path) -> list[str]:
    """Sorted paths, relative to ``folder``, of all images below it."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(_is_visible, folders)
        found += [Path(parent, name).relative_to(folder).as_posix()
                  for name in files
                  if name[0] != '.' and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def find_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(
        p.name for p in folder.iterdir() if p.is_dir() and _is_visible(p.name))


def split_folders(root: Path) -> list[str]:
    """The folders in ``root`` if they are splits, none if they are classes."""
    folders = find_folders(root)
    splits = [name for name in folders if name.lower() in SPLITS]
    if len(splits) == 1 and len(folders) > 2:
        # Without folders in it, it is a class with the name of a split.
        splits = find_folders(root / splits[0])
    return folders if splits else []


def read_split(root: Path, split: str, seed: int = 0) -> dict[str, list[str]]:
    """The images of 'train' or 'val', relative to ``root``, for each class.

    Without folders ``train`` and ``val``, a fifth of each class, at least one
    image, is held out for 'val', chosen by a hash of seed and file name.
    """
    has_splits = not {'train', 'val'}.isdisjoint(split_folders(root))
    folder = root / split if has_splits else root
    classes = {}
    for name in find_folders(folder):
        images = [(folder / name / image).relative_to(root).as_posix()
                  for image in find_images(folder / name)]
        if not has_splits:
            ranked = sorted(images, key=lambda image: hashlib.sha256(
                f'{seed}/{image}'.encode()).digest())
            held_out = {*ranked[:max(1, round(len(images) / 5))]}
            images = [x for x in images if (x in held_out) == (split == 'val')]
        classes[name] = images
    return classes


def unreadable(root: Path, images: Sequence[str]) -> list[str]:
    """Decode every image and return those that cannot be decoded."""
    with ThreadPoolExecutor() as pool:
        bad = track(pool.map(lambda x: decode(root / x) is None, images),
                    'checking images', len(images))
        return [image for image, is_bad in zip(images, bad) if is_bad]


def decode(path: Path) -> np.ndarray | None:
    """Decode an image as OpenMMLab does: (H, W, 3) BGR; None if it fails."""
    try:
        # Not cv2.imread, which fails on some names that are not ASCII.
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None


@DATASETS.register_module()
class ImageFolderDataset(BaseDataset):
    """Images in one folder for each class.

    In training, an unreadable image is replaced by another, with a warning.

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
        UserError: If there is no such folder, ``split`` is another, a class
            is not in ``metainfo``, or, in evaluation, an image is unreadable.
    """

    def __init__(self, data_root: str, split: str, metainfo: dict,
                 skip: Sequence[str] = (), seed: int = 0, **kwargs) -> None:
        if split not in ('train', 'val'):
            raise UserError("ImageFolderDataset's split must be 'train' or "
                            f"'val', but got {split!r}")
        self.split, self.seed = split, seed
        self.skip, self.warned = frozenset(skip), set()
        kwargs.setdefault('test_mode', split == 'val')
        super().__init__('', metainfo, data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images of the split, class by class."""
        root = Path(self.data_root).expanduser()
        try:
            classes = read_split(root, self.split, self.seed)
        except FileNotFoundError as e:
            raise UserError(f'no folder {e.filename}: it should hold one '
                            'folder of images for each class') from e
        labels = self.class_to_idx
        for name in classes.keys() - labels.keys():
            raise UserError(f'{root} holds the class {name}, which is not one '
                            f'of {some(list(labels), 6)}')
        return [dict(img_path=str(root / image), gt_label=labels[name])
                for name, images in classes.items() for image in images
                if image not in self.skip]

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
            print_log(f'{message}: another one is used instead', 'current',
                      logging.WARNING)
        self.warned.add(path)
