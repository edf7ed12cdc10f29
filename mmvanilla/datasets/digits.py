# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from collections.abc import Sequence

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..utils.errors import UserError


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """1,797 handwritten digits of 8 x 8 pixels; needs no download.

    They are the test set of the UCI "Optical Recognition of Handwritten
    Digits" data, which is a part of scikit-learn (Alpaydin and Kaynak, 1998,
    CC BY 4.0). Every fifth image of each class is held out for validation.
    A sample has ``img``, (8, 8, 1) of uint8 from 0 to 255, and ``gt_label``.

    Args:
        split (str): 'train' (1,442 images) or 'val' (355 images).
        pipeline (Sequence[dict]): Transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        UserError: If ``split`` is another, or scikit-learn is not installed.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, split: str, pipeline: Sequence[dict] = (),
                 **kwargs) -> None:
        if split not in ('train', 'val'):
            raise UserError("DigitsDataset's split must be 'train' or 'val', "
                            f'but got {split!r}')
        self.split = split
        super().__init__(ann_file='', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the images of the split, in scikit-learn's order."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as e:
            raise UserError('DigitsDataset reads the digits that scikit-learn '
                            'carries: pip install scikit-learn') from e
        digits = load_digits()
        # The data has grey levels from 0 to 16.
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        held_out = {i for label in range(10)
                    for i in np.flatnonzero(digits.target == label)[4::5]}
        return [dict(img=images[i, ..., None], img_shape=(8, 8),
                     ori_shape=(8, 8), sample_idx=i, gt_label=label)
                for i, label in enumerate(digits.target.tolist())
                if (i in held_out) == (self.split == 'val')]
