# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare classes: of data sets, annotations, labels and heads."""
import json
import logging
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch import nn

from ..utils.cfg_options import nearest
from ..utils.configs import unwrap_dataset
from ..utils.errors import UserError
from ..utils.terminal import some


def class_names(dataset) -> list[str]:
    """The names of a data set's classes; empty without any."""
    meta = getattr(dataset, 'metainfo', None) or {}
    return list(meta.get('classes') or ())


def check_class_names(name: str, cfg: dict, logger: logging.Logger) -> None:
    """Compare names of classes with those that annotations have."""
    for inner in (cfg.get('dataset'), *cfg.get('datasets', ())):
        if isinstance(inner, dict):  # inside of a wrapper
            check_class_names(name, inner, logger)
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = cfg['type']
        kind = registry.get(kind) if isinstance(kind, str) else kind
        # Before it reads the file, which may leave it no sample.
        method = getattr(kind, 'load_data_list', class_names)
        meta, path = cfg.get('metainfo') or {}, ''
        if method.__qualname__ == 'CocoDataset.load_data_list':
            data = registry.build(dict(cfg, lazy_init=True, pipeline=[]))
            meta, path = data.metainfo, data.ann_file
    classes = meta.get('classes') or cfg.get('classes')
    if isinstance(classes, str) and not Path(classes).is_file():
        raise UserError(
            f'the classes of the {name} data are a text, {classes!r}: a '
            f'tuple of one name needs a comma, ({classes!r}, )')
    if not classes or not path or not Path(path).is_file():
        return
    text = Path(path).read_text('utf-8')  # of which only a part is parsed
    start = re.search(r'"categories"\s*:\s*(?=\[)', text)
    if not start:
        raise UserError(f'{path} has no list of categories')
    found, _ = json.JSONDecoder().raw_decode(text, start.end())
    known = [category['name'] for category in found]
    unknown = [x for x in classes if x not in known]
    if unknown:
        near = nearest(str(unknown[0]), known)
        raise UserError(
            f'{path} has no category {some(unknown)}, which metainfo.classes '
            f'of the {name} data names; its categories are {some(known, 20)}'
            + (f'; did you mean {near}?' if near else ''))
    # mmdet numbers them in the order of the file, whatever that of classes.
    order = [x for x in known if x in classes]
    if order != list(classes):
        raise UserError(
            f'metainfo.classes of the {name} data is {some(classes, 20)}, but '
            f'labels are numbered in the order of {path}, {some(order, 20)}: '
            'give metainfo.classes in that order')
    if len(order) < len(known):
        logger.warning(
            f'The {name} data leave out objects of '
            f'{some([x for x in known if x not in classes], 6)}.')


def check_labels(runner, loops: dict, model: nn.Module) -> None:
    """Compare the classes of a classifier, its data and their labels."""
    names, number = {}, getattr(model.head, 'num_classes', None)
    for split in filter(loops.get, loops):
        data = loops[split].dataloader.dataset
        names[split] = class_names(data)
        while not isinstance(data, BaseDataset) and hasattr(data, 'dataset'):
            data = data.dataset
        folders = [*(getattr(data, 'folder_to_idx', None) or ())]
        if folders != names[split] and {*folders} == {*names[split]}:
            raise UserError(
                f'the classes of the {split} data are {some(names[split], 12)}'
                ', but labels are numbered in the sorted order of the folders,'
                f' {some(folders, 12)}: give classes in that order, or none')
        labels = set()
        with suppress(AttributeError, KeyError, TypeError):  # it has no labels
            for i in np.linspace(0, len(data) - 1, min(len(data), 20000)):
                labels.update(data.get_cat_ids(int(i)))
        if labels and number and not 0 <= min(labels) <= max(labels) < number:
            raise UserError(
                f'labels of the {split} data go from {min(labels)} to '
                f'{max(labels)}, but the head has the classes 0 to '
                f'{number - 1}')
    train, val = names['train'], names.get('val')
    if train and val and train != val:
        raise UserError(
            f'the classes of the train data are {some(train, 12)}, but those '
            f'of the val data {some(val, 12)}: give both the same')
    if train and number and number > len(train):
        runner.logger.warning(
            f'model.head.num_classes is {number}, but the data have '
            f'{len(train)} classes: the others are never trained')
    cfg = runner.cfg
    pipelines = [unwrap_dataset(cfg[f'{x}_dataloader']['dataset']).get(
        'pipeline') for x in ('val', 'test') if cfg.get(f'{x}_dataloader')]
    if val and len(pipelines) == 2 and pipelines[0] != pipelines[1]:
        runner.logger.warning(
            'The pipelines of val_dataloader and test_dataloader differ: the '
            'network is validated with the first, and tested and shipped with '
            'the second')
