# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from .digits import DigitsDataset
from .image_folder import ImageFolderDataset

__all__ = ['DigitsDataset', 'ImageFolderDataset']
