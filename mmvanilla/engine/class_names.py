# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Names of the classes of data sets, and those of their annotations."""
import json
import re
from logging import Logger
from pathlib import Path

from mmengine.registry import DATASETS

from ..utils.cfg_options import nearest
from ..utils.errors import UserError
from ..utils.terminal import some


def class_names(dataset) -> list[str]:
    """The names of a data set's classes; empty without any."""
    meta = getattr(dataset, 'metainfo', None) or {}
    return list(meta.get('classes') or ())


def check_class_names(name: str, cfg: dict, logger: Logger) -> None:
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
