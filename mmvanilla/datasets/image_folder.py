# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Data sets that are a folder with one folder of images for each class."""
import hashlib
import logging
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..utils.errors import UserError
from ..utils.terminal import some
from .image_files import SUFFIXES, check_image

# The word in a folder's name that makes it a split.
SPLIT = re.compile(
    '(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?)|'
    '(?P<test>test(?:ing)?))(?:set)?(?![a-z])', re.IGNORECASE)
# Folders that operating systems and archivers make.
IGNORED = ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information',
           'lost+found')


def _is_visible(name: str) -> bool:
    return name[0] != '.' and name not in IGNORED


def find_images(folder: Path, others: Counter | None = None,
                within: Sequence[str] = ('', )) -> list[str]:
    """Paths, relative to ``folder``, of the images ``within``, each once.

    Links come after the files to which they lead. What is left out is counted
    in ``others``, by its reason.
    """
    others = Counter() if others is None else others
    images, paths, links = [], deque(within), deque()
    root = folder.resolve()
    seen = {(x.st_dev, x.st_ino) for x in map(os.stat, (root, *root.parents))}
    while paths or links:
        path = (paths or links).popleft()
        full = os.path.join(folder, path)
        try:
            info = os.stat(full)
        except OSError:
            others['broken link'] += 1
            continue
        file = info.st_dev, info.st_ino
        suffix = os.path.splitext(path)[1].lower()
        if file in seen and path not in within:
            others['link to others'] += 1
        elif stat.S_ISDIR(info.st_mode):
            for entry in sorted(os.scandir(full), key=lambda x: x.name):
                if _is_visible(entry.name):
                    (links if entry.is_symlink() else paths).append(
                        f'{path}/{entry.name}' if path else entry.name)
        elif suffix not in SUFFIXES:
            others[suffix or 'without a suffix'] += 1
        elif not info.st_size or not stat.S_ISREG(info.st_mode):
            others['empty'] += 1
        else:
            images.append(path)
        seen.add(file)
    return sorted(images)


def left_out(counts: Counter) -> list[str]:
    """A line on the files that are left out, if any, by kind."""
    text = ', '.join(f'{n} {kind}' for kind, n in counts.most_common() if n)
    return [f'Files that are left out: {text}'] * bool(text)


def counted(faults: dict[str, Sequence]) -> list[str]:
    """A line on each kind of fault, with the number and the first of it."""
    return [f'--data: {len(found)} {what}: {some(found)}'
            for what, found in faults.items() if found]


def find_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(x.name for x in os.scandir(folder)
                  if x.is_dir() and _is_visible(x.name))


def find_splits(root: Path) -> dict[str, list[str]]:
    """The folders in ``root`` that are splits, as ``{'val': ['Valid']}``."""
    found, folders = defaultdict(list), find_folders(root)
    for name in folders:
        word = SPLIT.search(name)
        if word:
            found[word.lastgroup].append(name)
    # One of several folders, without folders in it, is a class.
    if len(found) == 1 and len(folders) > 2 and not any(
            find_folders(root / x) for x in chain(*found.values())):
        found.clear()
    return dict(found)


def class_name(folder: str) -> str:
    """The class of a folder: its name, in one form of Unicode."""
    if re.search('[\n\ud800-\udfff]', folder):
        raise UserError(f'the name of the folder {os.fsencode(folder)} is not '
                        'UTF-8, or has two lines: rename it')
    return unicodedata.normalize('NFC', folder)


def hold_out(names: Sequence[str], seed: int = 0) -> set[str]:
    """A fifth of the names, at least one, whatever their order."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(
        os.fsencode(f'{seed}/{name}')).digest())
    return {*ranked[:max(1, round(len(names) / 5))]}


def read_splits(root: Path, seed: int = 0, others: Counter | None = None,
                needed: Sequence[str] = ('train', 'val')
                ) -> dict[str, dict[str, list[str]]]:
    """The images of 'train' and 'val', relative to ``root``, by class.

    Without folders of splits, a fifth of each class is held out for 'val'.
    """
    if not root.is_dir():
        raise UserError(f'no folder {root}: it should hold one folder of '
                        'images for each class')
    others = Counter() if others is None else others
    folders, found = find_folders(root), find_splits(root)
    if found and any(len(found.get(x, ())) != 1 for x in needed):
        raise UserError(
            f'{root} must hold both train and val, or neither, but holds '
            f'{some(folders, 6)}: to hold out a fifth of one of them, give '
            'that; if they are classes, move them into folders train and val')
    places = {name: split for split in ('train', 'val')
              for name in found.get(split, ())} if found else {'': 'train'}
    for name in folders:
        if found and name not in places:
            others[f'folder {name}'] += 1
        elif not found and len({*folders} & {*find_folders(
                root / name)}) > 1:
            raise UserError(f'{root / name} holds folders that are called as '
                            'classes beside it: move it elsewhere, if it is '
                            'a copy of them')
        elif not found and len(find_splits(root / name)) > 1:
            raise UserError(f'{root / name} holds splits: did you mean that '
                            'folder? Splits belong above the classes')
    splits = dict(train={}, val={})
    for place, split in places.items():
        for name in find_folders(root / place):
            splits[split][class_name(name)] = []
    for image in find_images(root, others, [*places]):
        *folders, _ = image.split('/')
        place = folders.pop(0) if found else ''
        if folders:
            splits[places[place]][class_name(folders[0])].append(image)
        else:
            others['in no class'] += 1
    for name, images in () if found else splits['train'].items():
        held_out = hold_out(images, seed)
        splits['val'][name] = [x for x in images if x in held_out]
        splits['train'][name] = [x for x in images if x not in held_out]
    return splits


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
        classes = read_splits(root, self.seed, None, [self.split])[self.split]
        labels = {class_name(x): i for x, i in self.class_to_idx.items()}
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
        except Exception as e:
            path = self.get_data_info(idx)['img_path']
            problem, _ = check_image(path)
            if not problem:
                raise UserError(f'the pipeline fails for the image {path}: '
                                f'{type(e).__name__}: {e}') from e
        message = f'cannot read the image {path}: {problem}'
        if self.test_mode:
            raise UserError(f'{message}; remove it, or let --check-images '
                            'find all such images and leave them out')
        if path not in self.warned:
            print_log(f'{message}; another one is used instead', 'current',
                      logging.WARNING)
        self.warned.add(path)
