# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What is checked of detectors and segmentors before their first epoch."""
import json
import logging

import pytest
from downstream.runs import CONFIGS, data_options
from downstream.shapes import generate
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmvanilla.engine.classes import check_class_names
from mmvanilla.engine.runs import train
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    """Four images of shapes, and three to validate on."""
    return generate(tmp_path_factory.mktemp('few'), 4, 3)


def names(few, classes, **kwargs) -> None:
    """Check the names of a data set inside of a wrapper."""
    node = dict(type='CocoDataset', metainfo=dict(classes=classes),
                data_root=str(few), ann_file='train.json') | kwargs
    import mmdet.datasets  # noqa: F401
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_class_names('train', dict(
            type='RepeatDataset', dataset=node), logging.getLogger('names'))


@pytest.mark.parametrize('classes, message', [
    (('circle', 'Square', 'triangle'), 'category Square.*mean square'),
    (('circle', 'triangle', 'square'),
     'in the order of .*train.json, circle, square, triangle'),
    ('square', r"'square': .* needs a comma, \('square', \)"),
    (None, 'no category person, bicycle, car and 77 more'),
])
def test_names_that_differ(few, classes, message):
    with pytest.raises(UserError, match=message):
        names(few, classes) if classes else names(few, None, metainfo={})


def test_names_of_a_part(few, caplog):
    """Where categories come first, with lists in them, in another order."""
    content = json.loads((few / 'train.json').read_text())
    for i, category in enumerate(content['categories'][::-1]):
        category.update(id=i, keypoints=['a', 'b'])
    content['categories'].reverse()
    (few / 'first.json').write_text(json.dumps(
        dict(info=dict(description='"categories": none'),
             categories=content.pop('categories')) | content, indent=1))
    names(few, ('triangle', 'circle'), ann_file='first.json')
    assert 'leave out objects of square' in caplog.text


@pytest.mark.parametrize('name, given, near', [
    ('retinanet', 'coco/bbox_map', 'coco/bbox_mAP'),
    ('upernet', 'miou', 'mIoU')])
def test_metrics_of_an_untrained_network(few, tmp_path, name, given, near):
    """Which detects nothing."""
    options = data_options(name, few) + [
        f'default_hooks.checkpoint.save_best={given}']
    with pytest.raises(UserError, match=f'save_best is {given}, but .* did '
                                        f'you mean {near}'):
        train(str(CONFIGS / f'{name}_shapes.py'), work_dir=str(tmp_path),
              cfg_options=options)


def test_masks_with_more_labels_than_classes(few, tmp_path):
    cfg = Config.fromfile(CONFIGS / 'upernet_shapes.py')
    cfg.merge_from_dict(dict(
        x.split('=') for x in data_options('upernet', few)))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(
            classes=('background', 'shape'))
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 2
        head.loss_decode.class_weight = None
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='label . is not below num_classes'):
        train(str(tmp_path / 'config.py'), work_dir=str(tmp_path))
