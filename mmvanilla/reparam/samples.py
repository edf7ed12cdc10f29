# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Find the images on which two models are compared."""
import copy
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner

from ..utils import configs
from ..utils.errors import UserError


@dataclass
class Samples:
    """Batches of one sample each, as a data loader yields them."""

    batches: list[dict]
    random: bool = False  # random images, since the data are not there
    all_classes: int | None = None  # of the data set
    whole: bool = False  # every sample of the data set

    @property
    def classes(self) -> int | None:
        """How many classes the samples are of; None without labels."""
        found = set()
        for sample in (batch['data_samples'][0] for batch in self.batches
                       if batch.get('data_samples')):
            labels = sample.get('gt_label')
            if 'gt_instances' in sample:
                labels = sample.gt_instances.get('labels')
            elif 'gt_sem_seg' in sample:
                labels = sample.gt_sem_seg.data
                labels = labels[labels != 255]
            found |= set(() if labels is None else labels.unique().tolist())
        return len(found) or None

    def __str__(self) -> str:
        text = f'{len(self.batches)} '
        text += 'random images' if self.random else 'real samples'
        if self.classes and self.all_classes:
            text += f' of {self.classes} of {self.all_classes} classes'
        return text


def find_samples(cfg: Config, number: int, split: str = 'val',
                 test_pipeline: bool = False) -> Samples:
    """Read samples spread over a config's data; random images without any."""
    if number < 1:
        raise UserError(f'the number of samples must be positive: {number}')
    given = cfg.get(f'{split}_dataloader') or {}
    if not given.get('dataset') or configs.missing_data(given.dataset):
        return _random_samples(cfg, number)
    loader = dict(
        dataset=copy.deepcopy(given.dataset), batch_size=1, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False))
    if given.get('collate_fn'):
        loader['collate_fn'] = copy.deepcopy(given.collate_fn)
    pipeline = test_pipeline and configs.test_dataset(cfg).get('pipeline')
    if pipeline:
        loader['dataset'] = _with_pipeline(loader['dataset'], pipeline)
    with configs.scope_of(cfg):
        try:
            loader = Runner.build_dataloader(loader, seed=0)
        except FileNotFoundError:
            return _random_samples(cfg, number)
        except ValueError as e:
            raise UserError(f'cannot build the {split} data loader of '
                            f'{cfg.filename}: {e}') from e
        data = loader.dataset
        if not len(data):
            raise UserError(f'the {split} data of {cfg.filename} are empty')
        order = torch.randperm(
            len(data), generator=torch.Generator().manual_seed(0))
        batches = [loader.collate_fn([data[i]])
                   for i in order[:number].sort().values.tolist()]
    classes = len(getattr(data, 'metainfo', {}).get('classes') or ())
    return Samples(batches, False, classes or None, number >= len(data))


def _with_pipeline(dataset: dict, pipeline: list) -> dict:
    """A data set without wrappers that repeat or mix, in another pipeline."""
    if dataset.get('datasets'):
        return dict(dataset, datasets=[
            _with_pipeline(inner, pipeline) for inner in dataset['datasets']])
    if dataset.get('dataset'):
        return _with_pipeline(dataset['dataset'], pipeline)
    return dict(dataset, pipeline=copy.deepcopy(pipeline))


def _random_samples(cfg: Config, number: int) -> Samples:
    # There are no files of images and no annotations to load.
    pipeline = configs.test_dataset(cfg).get('pipeline') or []
    transforms = [copy.deepcopy(t) for t in pipeline
                  if not configs.type_name(t).startswith('Load')]
    rng, batches = np.random.default_rng(0), []
    shape = 224, 224, configs.image_channels(cfg)
    with configs.scope_of(cfg):
        pipeline = Compose(transforms)
        for i in range(number):
            image = rng.integers(0, 256, shape, np.uint8)
            results = dict(img=image, img_id=i, img_path='',
                           img_shape=shape[:2], ori_shape=shape[:2])
            batches.append(
                pseudo_collate([pipeline(results)]) if transforms else
                dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]))
    return Samples(batches, random=True)
