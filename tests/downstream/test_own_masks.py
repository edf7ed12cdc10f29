# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A folder of masks, as --data takes it, and what is wrong with others."""
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from downstream.runs import CONFIGS
from downstream.shapes import CLASSES, draw
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from tiny import ROOT

from mmvanilla.checkpoints import load_checkpoint
from mmvanilla.engine import runs
from mmvanilla.engine.own_data import use_data
from mmvanilla.engine.predict import predict
from mmvanilla.export import export
from mmvanilla.utils.configs import read_config, scope_of
from mmvanilla.utils.errors import UserError

NAMES = ['background', *CLASSES]
COLORS = np.array([(0, 0, 0), (220, 20, 60), (20, 160, 60), (30, 60, 220)])


def write(root: Path, colors: bool, counts=(('train', 48), ('val', 16))):
    """Images, some of odd sizes; masks of numbers, or of colors."""
    for split, count in counts:
        rng = np.random.default_rng(len(split))
        for i in range(count):
            image, mask, _ = draw(rng, 64)
            height = 64 - i % 5 * (split == 'train')
            mask = mask[:height] - 1  # 255 is not labelled
            if colors:
                mask = np.where(mask[..., None] < 4, COLORS[mask % 4], 255)
            for kind, pixels in (('images', image[:height, :, ::-1]),
                                 ('masks', mask.astype(np.uint8))):
                path = root / kind / split / f'{i:02d}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    lines = [f'{name} {r} {g} {b}' if colors else name
             for name, (r, g, b) in zip(NAMES, COLORS)]
    (root / 'classes.txt').write_text('\n'.join(lines) + '\n')
    return root


def digest(root: Path) -> dict:
    return {path: hashlib.md5(path.read_bytes()).hexdigest()
            for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    """The recipe with a narrow network, small images and few epochs."""
    cfg, narrow = map(Config.fromfile, (
        ROOT / 'configs/segmentation/upernet_vanillanet-13_finetune.py',
        CONFIGS / 'upernet_shapes.py'))
    cfg.model, cfg.tta_pipeline = narrow.model, narrow.tta_pipeline
    cfg.model.backbone.deep_training = False
    cfg.model.data_preprocessor.size = (64, 64)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].update(num_workers=0, persistent_workers=False)
        cfg[name].dataset.pipeline = narrow[name].dataset.pipeline
    for name in ('val_dataloader', 'test_dataloader'):
        cfg[name].dataset.pipeline[1].scale = (64, 64)
    cfg.train_dataloader.batch_size = 8
    cfg.optim_wrapper = narrow.optim_wrapper
    cfg.train_cfg.update(max_epochs=15, val_interval=15)
    cfg.randomness = dict(seed=0)
    path = tmp_path_factory.mktemp('masks') / 'narrow.py'
    cfg.dump(path)
    return path


def labels(cfg) -> list:
    """The numbers that the network is trained with, without augmentation."""
    cfg.val_dataloader.dataset.pipeline[1:2] = []
    with scope_of(cfg):
        data = Runner.build_dataloader(cfg.val_dataloader).dataset
    return [x['data_samples'].gt_sem_seg.data[0].numpy() for x in data]


def test_from_training_to_the_file(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / 'data', colors=True)
    before = digest(folder)
    runner = runs.train(str(config), work_dir='work', data='data')
    assert runner.message_hub.get_info('best_score') > 35
    heads = runner.model.decode_head, runner.model.auxiliary_head
    assert [head.num_classes for head in heads] == [4, 4]
    best = runner.message_hub.get_info('best_ckpt')
    meta = load_checkpoint(best)['meta']['dataset_meta']
    assert [*meta['classes']] == NAMES
    assert np.array_equal(meta['palette'], COLORS)
    cfg = read_config('work/deploy.py')
    report = export(cfg, 'work/deploy.pth', 'net.onnx', 'onnx')
    assert 'background' in predict('data/images/val/00.png', 'work/deploy.py')

    def test(file, data, **options):
        metrics = runs.test(str(config), file, work_dir='test', data=data,
                            **options)
        classes = {name: metrics[f'IoU/{name}'] for name in NAMES}
        assert max(classes, key=classes.get) == 'background'  # most pixels
        assert np.mean([*classes.values()]) == pytest.approx(
            metrics['mIoU'], abs=0.01)
        return metrics['mIoU']

    # The same images with masks of numbers, and of one split only.
    numbers = write(tmp_path / 'numbers', False, [('val', 16)])
    expected = test(best, 'numbers')
    assert [test(best, 'data'), test('net.onnx', 'data'),
            report.verification.metrics['mIoU'][0]] == pytest.approx(
                [expected] * 3, abs=0.01)
    assert test(best, 'numbers', tta=True) > 35
    (numbers / 'classes.txt').write_text('\n'.join(NAMES[::-1]))
    with pytest.raises(UserError, match='the classes triangle.* but .* those'):
        test(best, 'numbers')
    assert digest(folder) == before


def test_layouts(config, tmp_path):
    """Colors and numbers are the same labels; a fifth is held out."""
    read = []
    for colors in (True, False):
        root = write(tmp_path / f'{colors}', colors, [('train', 10)])
        cfg = read_config(str(config))
        cfg.work_dir = str(tmp_path / 'work')
        assert use_data(cfg, str(root)) == []
        read.append(labels(cfg))
    assert len(read[0]) == 2
    for a, b in zip(*read):
        assert np.array_equal(a, b) and {*np.unique(a)} >= {0, 255}
    (root / 'classes.txt').unlink()  # of numbers
    cfg = read_config(str(config))
    use_data(cfg, str(root))
    assert cfg.val_dataloader.dataset.metainfo.classes == ['0', '1', '2', '3']
    Image.new('L', (9, 9)).save(root / 'masks/train/alone.png')
    Image.new('L', (9, 9)).save(root / 'images/train/bare.jpg')
    Image.new('L', (9, 9)).save(root / 'images/train/04.webp')
    (root / 'images/train/05.png').write_bytes(b'x')
    keep(root, 0, 1, 3)
    assert re.search(
        '1 files repeat a name, .*04.webp.*1 images have no mask .*bare.*1 '
        'masks have no image .*alone.*1 of 10 images are unreadable .*05.png.*'
        '1 classes have no pixel in train: 2',
        ' '.join(use_data(cfg, str(root))))


def change(root, name, array):
    Image.fromarray(array).save(root / 'masks' / 'train' / name)


def keep(root, *numbers):
    for path in (root / 'masks').rglob('*.png'):
        mask = np.asarray(Image.open(path))
        mask = np.where(np.isin(mask, numbers), mask, np.uint8(255))
        Image.fromarray(mask).save(path)


@pytest.mark.parametrize('colors, break_it, message', [
    (False, lambda x: change(x, '03.png', np.zeros((9, 9), np.uint8)),
     r'1 masks .*03.png \(its size'),
    (False, lambda x: change(x, '00.png', np.full((64, 64), 7, np.uint8)),
     'the numbers 0, 1, 2, 3, 7 .*of 4 classes'),
    (False, lambda x: keep(x, 0), r'numbers 0 \(beside 255, .*2 or more in'),
    (False, lambda x: change(x, '00.png', np.full((64, 64), 7, np.uint16)),
     'one number of 8 bits'),
    (True, lambda x: change(x, '00.png', np.full((64, 64, 3), 9, np.uint8)),
     r'no color \[9, 9, 9\]'),
    (True, lambda x: (x / 'masks/train/00.png').write_text('x'),
     '00.png .cannot identify'),
    (True, lambda x: (x / 'classes.txt').unlink(), '8 masks .*8 bits'),
    (True, lambda x: (x / 'classes.txt').write_text('a 1 1 1\nb'), 'for all'),
    (True, lambda x: (x / 'classes.txt').write_text('a 1 1 300'), 'up to 255'),
    (False, lambda x: (x / 'masks').rename(x / 'labels'), 'no image with a m'),
])
def test_refusals(config, tmp_path, colors, break_it, message):
    root = write(tmp_path / 'data', colors, [('train', 10)])
    break_it(root)
    cfg = read_config(str(config))
    cfg.work_dir = str(tmp_path / 'work')
    with pytest.raises(UserError, match=message):
        use_data(cfg, str(root))
