# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Classes of folders, labels, heads and checkpoints that do not agree."""
import re
import shutil

import cv2
import numpy as np
import pytest
from tiny import refusal, run, tiny_cfg

from mmvanilla.engine.own_data import use_image_folder
from mmvanilla.engine.runs import test as evaluate
from mmvanilla.utils.errors import UserError


@pytest.fixture
def cfg(tmp_path):
    """A run on folders of images: train and val, of a, b and c."""
    rng = np.random.default_rng(0)
    for folder in ('train/a', 'train/b', 'train/c', 'val/a', 'val/b', 'val/c'):
        place = tmp_path / 'data' / folder
        place.mkdir(parents=True)
        for i in range(8):
            cv2.imwrite(str(place / f'{i}.png'),
                        rng.integers(0, 255, (32, 32), np.uint8))
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        transforms = [x for x in loader.dataset.pipeline
                      if 'Load' not in str(x['type'])]
        loader.dataset = dict(
            type='CustomDataset', data_root=str(tmp_path / 'data'),
            data_prefix='train' if split == 'train' else 'val',
            pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'),
                      *transforms])
    cfg.model.head.num_classes = 3
    cfg.val_evaluator = cfg.test_evaluator = dict(type='Accuracy', topk=(1, ))
    return cfg


def test_validation_lacks_a_class(cfg, tmp_path):
    shutil.rmtree(tmp_path / 'data' / 'val' / 'a')
    assert re.search('train data are a, b, c, but those of the val data b, c',
                     refusal(cfg, tmp_path))


def test_names_in_another_order_than_the_folders(cfg, tmp_path):
    for name in ('train', 'val'):
        cfg[f'{name}_dataloader'].dataset.classes = ['c', 'b', 'a']
    assert re.search('train data are c, b, a, but labels .* a, b, c',
                     refusal(cfg, tmp_path))


def test_labels_that_count_from_one(cfg, tmp_path):
    lines = [f'{name}/{i}.png {label}\n' for label, name in enumerate('abc', 1)
             for i in range(8)]
    (tmp_path / 'train.txt').write_text(''.join(lines))
    cfg.train_dataloader.dataset.update(
        ann_file=str(tmp_path / 'train.txt'), classes=['a', 'b', 'c'])
    assert re.search('go from 1 to 3, but the head has the classes 0 to 2',
                     refusal(cfg, tmp_path))


def test_other_classes_than_the_checkpoint(cfg, tmp_path):
    """A head of more classes trains, with a line; another test does not."""
    cfg.model.head.num_classes = 5
    cfg.val_dataloader.dataset.pipeline[0].imdecode_backend = 'pillow'
    run(cfg, tmp_path)
    log = ''.join(x.read_text() for x in tmp_path.rglob('*.log'))
    assert 'num_classes is 5, but the data have 3 classes' in log
    assert 'pipelines of val_dataloader and test_dataloader differ' in log
    shutil.rmtree(tmp_path / 'data' / 'val' / 'a')
    with pytest.raises(UserError, match='trained for a, b, c, but .* b, c'):
        evaluate(str(tmp_path / 'config.py'),
                 str(tmp_path / 'work' / 'epoch_1.pth'),
                 work_dir=str(tmp_path / 'test'))
    cfg.load_from = str(tmp_path / 'work' / 'epoch_1.pth')
    cfg.work_dir = str(tmp_path / 'again')
    (tmp_path / 'data' / 'train' / 'a').rename(
        tmp_path / 'data' / 'train' / 'd')
    (tmp_path / 'data' / 'val' / 'd').mkdir()
    for path in sorted((tmp_path / 'data' / 'val' / 'b').iterdir())[:2]:
        shutil.copy(path, tmp_path / 'data' / 'val' / 'd')
    run(cfg, tmp_path)
    log = ''.join(x.read_text() for x in (tmp_path / 'again').rglob('*.log'))
    assert 'was trained for a, b, c, and is kept, but the data have b' in log


def test_a_copy_beside_the_classes(cfg, tmp_path):
    shutil.copytree(tmp_path / 'data' / 'train',
                    tmp_path / 'data' / 'train' / 'photos')
    with pytest.raises(UserError, match='photos holds folders that are call'):
        use_image_folder(cfg, str(tmp_path / 'data' / 'train'))


def test_the_best_checkpoint_of_a_copied_work_dir(tmp_path):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    run(cfg, tmp_path)
    (tmp_path / 'work').rename(tmp_path / 'moved')
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(tmp_path / 'moved')
    best = run(cfg, tmp_path, resume='auto').message_hub.get_info('best_ckpt')
    # One that is no longer the best is removed, as in any run.
    assert [*map(str, (tmp_path / 'moved').glob('best*'))] == [best]
