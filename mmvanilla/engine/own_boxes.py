# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Make a config of mmdet read a folder of boxes, as ``--data`` does."""
import hashlib
import json
import re
from pathlib import Path

from mmengine.config import Config

from ..datasets.box_folder import BoxFolder
from ..datasets.image_files import find_unreadable
from ..utils.configs import type_name
from ..utils.files import write_beside
from .own_data import find_datasets, set_in_place, trained_classes


def use_box_folder(cfg: Config, folder: str, checkpoint: str | None = None,
                   check_images: bool = False) -> list[str]:
    """Make a detector's config, in place, use a folder of boxes."""
    root, datasets = Path(folder).expanduser().absolute(), find_datasets(cfg)
    evaluators = [x for x in ('val_evaluator', 'test_evaluator') if cfg.get(x)]
    learned = re.search("mask_head': [^N]|'segm'", str(
        [cfg.model, *map(cfg.get, evaluators)]))
    masks = True if learned else (
        False if "'with_mask': True" in str(cfg.to_dict()) else None)
    found = BoxFolder(root, masks)
    for images in found.splits.values() if check_images else ():
        bad, more = find_unreadable(root, [*images], True)
        found.notes += more
        for file in bad:
            del images[file]
    unused = len(found.splits.get('train', ())) * (checkpoint is not None)
    found.notes += [f'--data: {unused} images are for training, and '
                    f'{len(found.splits["val"])} for validation'
                    ] * (unused > 0)
    found.require('val', *['train'] * (checkpoint is None))
    if checkpoint is not None:
        found.use_classes(trained_classes(checkpoint), checkpoint)
    paths = {x: write_annotations(found.to_coco(x), cfg, x)
             for x in found.splits}
    for split, dataset in datasets:
        if split in paths:
            pipeline = dataset.get('pipeline') or []
            dataset.clear()  # in place, inside of its wrappers
            dataset.update(
                type='mmdet.CocoDataset', data_root=str(root),
                ann_file=paths[split], data_prefix=dict(img=''),
                # mmdet's own palette has 80 colors.
                metainfo=dict(classes=found.classes, palette='random'),
                # Images without a box are used, and so are small ones.
                filter_cfg=dict(filter_empty_gt=False),
                test_mode=split == 'val', pipeline=pipeline)
    for name in evaluators:
        given = [cfg[name]] if isinstance(cfg[name], dict) else cfg[name]
        given = next((x for x in given if type_name(x) == 'CocoMetric'), {})
        cfg[name] = dict(given, type='mmdet.CocoMetric', classwise=True,
                         ann_file=paths['val'], format_only=False)
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if saving.get('save_best') == 'auto':  # would be the AP of a class
        saving['save_best'] = 'coco/bbox_mAP'
    for name, part in cfg.model.items():
        if name != 'rpn_head':  # tells objects from background only
            set_in_place(part, len(found.classes))
    return found.notes


def work_folder(cfg: Config) -> Path:
    """The work dir, or what it is without ``--work-dir``."""
    return Path(cfg.get('work_dir') or Path(
        'work_dirs', Path(cfg.filename or 'data').stem)).absolute()


def write_annotations(content: dict, cfg: Config, split: str) -> str:
    """Write annotations to the work dir, named after what they hold."""
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = work_folder(cfg) / f'{split}-{digest}.json'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_beside(path) as (part, ):
            part.write_text(text)
    return str(path)
