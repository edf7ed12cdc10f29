# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from tiny import DIGITS

from mmvanilla.evaluation import ImageNetReaLAccuracy
from mmvanilla.utils.configs import read_config
from mmvanilla.utils.errors import UserError

IN1K = DIGITS.parent / 'vanillanet-5_8xb128_in1k.py'

# Valid classes of images 1 to 6; the third has none.
LABELS = [[0], [1, 2], [], [3], [0, 3], [2]]


@pytest.fixture
def ann_file(tmp_path) -> str:
    (tmp_path / 'real.json').write_text(json.dumps(LABELS))
    return str(tmp_path / 'real.json')


def samples(predicted: dict) -> list:
    """A sample for each image's number and the class it is taken for."""
    return [
        DataSample(metainfo=dict(
            img_path=f'val/n01/ILSVRC2012_val_{number:08d}.JPEG')
        ).set_gt_label(0).set_pred_score(
            torch.eye(4)[class_]).set_pred_label(class_)
        for number, class_ in predicted.items()]


def test_accuracies_by_hand(ann_file):
    """With the options that the docstring names."""
    cfg = read_config(str(IN1K), {
        'test_evaluator.ann_file': ann_file,
        'test_evaluator.type': 'ImageNetReaLAccuracy',
        'test_evaluator.topk': (1, 2)})
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        evaluator = Evaluator(cfg.test_evaluator)
    # In the order of the data set, by classes, not of the images' numbers.
    for batch in ({6: 2, 1: 0, 3: 0}, {5: 1, 2: 2}, {4: 1}):
        evaluator.process(samples(batch))
    metrics = evaluator.evaluate(6)
    # Images 1, 2 and 6 are right of 1, 2, 4, 5 and 6; 1 and 3 have label 0.
    assert metrics['accuracy/real'] == pytest.approx(60)
    assert metrics['accuracy/top1'] == pytest.approx(100 / 3)
    assert 'accuracy/top2' in metrics


def test_other_files(tmp_path):
    path = tmp_path / 'real.json'
    with pytest.raises(UserError, match='No such file'):
        ImageNetReaLAccuracy(str(path))
    for text in ('', '{}', '[1, 2]'):
        path.write_text(text)
        with pytest.raises(UserError, match='ReaL labels'):
            ImageNetReaLAccuracy(str(path))


@pytest.mark.parametrize('number, message', [
    (7, 'labels of 6 images.*none of "ILSVRC'),
    (0, 'none of "ILSVRC'), (3, 'no image that was tested')])
def test_images_without_labels(ann_file, number, message):
    metric = ImageNetReaLAccuracy(ann_file)
    with pytest.raises(UserError, match=message):
        metric.process(None, [s.to_dict() for s in samples({number: 1})])
        metric.evaluate(1)
