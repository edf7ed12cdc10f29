# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Training from a config's file, in this process and in forks of it."""
import math

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from PIL import Image
from tiny import read, refused, run_ranks, tiny_cfg

from mmvanilla.engine.test import test as evaluate
from mmvanilla.engine.train import train


@HOOKS.register_module(force=True)
class Interrupt(Hook):
    """Ctrl-C in the second epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt


def dumped(cfg, path) -> str:
    cfg.dump(path)
    return str(path)


def test_ctrl_c_tells_how_to_go_on(tmp_path, monkeypatch, capfd):
    cfg = tiny_cfg('work')
    cfg.custom_hooks.append(dict(type='Interrupt'))
    dumped(cfg, tmp_path / 'config.py')
    error = refused(monkeypatch, capfd, 'train.py', 'config.py', '--work-dir',
                    'a b', cwd=tmp_path)
    assert error.startswith('error: training was interrupted; go on with: ')
    assert error.endswith("train.py config.py --work-dir 'a b' --resume")
    assert (tmp_path / 'a b' / 'epoch_1.pth').is_file()


def test_a_last_batch_of_one_image(tmp_path, monkeypatch, capfd):
    cfg = tiny_cfg('work')
    cfg.train_dataloader.dataset.indices = 17
    dumped(cfg, tmp_path / 'config.py')
    error = refused(monkeypatch, capfd, 'train.py', 'config.py', cwd=tmp_path)
    assert 'a batch of one image: set train_dataloader.drop_last' in error
    train('config.py', cfg_options={'train_dataloader.drop_last': True,
                                    'train_cfg.max_epochs': 1})


# -------------------------------------------------------------- learning rate


@pytest.mark.parametrize('rule, ratio', [('sqrt', math.sqrt(1 / 2)),
                                         ('linear', 1 / 2)])
def test_auto_scale_lr(tmp_path, rule, ratio):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1)
    cfg.auto_scale_lr = dict(base_batch_size=64, rule=rule)
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(head=dict(lr_mult=3))
    config = dumped(cfg, tmp_path / 'config.py')
    rates = []
    for scaled in (False, True):
        runner = train(config, auto_scale_lr=scaled, validate=False)
        rates.append(
            np.array([group['initial_lr'] for group in
                      runner.optim_wrapper.optimizer.param_groups]))
    assert len(set(rates[0])) == 2
    np.testing.assert_allclose(rates[1], rates[0] * ratio, rtol=1e-12)


def test_another_batch_is_told_once(tmp_path, capfd):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1)
    config = dumped(cfg, tmp_path / 'config.py')
    train(config, validate=False)
    found = [x for x in ''.join(capfd.readouterr()).splitlines()
             if '--auto-scale-lr' in x]
    assert len(found) == 1
    assert 'The batch is 16 in all, and the learning rate is for 64' in found[
        0]


# ------------------------------------------------------------ folder of images


@pytest.fixture
def images(tmp_path):
    """A config of 2 classes x 4 images, named alike in both folders."""
    rng = np.random.default_rng(0)
    for name in 'ab':
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / 'data' / name / f'{i}.png')
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    cfg.model.backbone.in_channels = 3
    cfg.model.head.num_classes = 2
    cfg.model.data_preprocessor = dict(
        type='ClsDataPreprocessor', num_classes=2)
    cfg.train_dataloader.batch_size = 4
    cfg.val_evaluator.topk = cfg.test_evaluator.topk = 1
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='CustomDataset', data_root=str(tmp_path / 'data'),
            pipeline=[dict(type='LoadImageFromFile'),
                      dict(type='PackInputs')])
    return cfg


@pytest.mark.parametrize('workers', [0, 2])
def test_an_unreadable_image_is_named(images, tmp_path, monkeypatch, capfd,
                                      workers):
    broken = tmp_path / 'data' / 'b' / '2.png'
    broken.write_bytes(b'')
    images.train_dataloader.num_workers = workers
    dumped(images, tmp_path / 'config.py')
    error = refused(monkeypatch, capfd, 'train.py', 'config.py', cwd=tmp_path)
    assert error == (f'error: cannot read the image {broken}: it is missing, '
                     'cut short or of an unknown format')


def test_pictures_of_equal_names_are_kept_apart(images, tmp_path):
    config = dumped(images, tmp_path / 'config.py')
    train(config)
    shown = tmp_path / 'shown'
    evaluate(config, str(tmp_path / 'work' / 'epoch_1.pth'),
             show_dir=str(shown))
    assert len(list(shown.rglob('*.png'))) == 8


# ----------------------------------------------------------- several processes


def test_two_halves_are_one_batch(tmp_path):
    """1 process with batch 8, and 2 with batch 4, in double precision."""
    cfg = tiny_cfg('unused', epochs=2)
    cfg.custom_imports.imports.append('ranks')
    cfg.model.data_preprocessor.type = 'DoublePreprocessor'
    cfg.custom_hooks.append(dict(type='EvalNorms'))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    weights = []
    for count in (1, 2):
        cfg.train_dataloader.batch_size = 8 // count
        config = dumped(cfg, tmp_path / f'config{count}.py')
        run_ranks(count, config, tmp_path / f'{count}', torch.float64)
        weights.append(
            read(tmp_path / f'{count}' / 'epoch_2.pth')['state_dict'])
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][key], value, rtol=1e-10, atol=1e-10)
    assert weights[0]['head.classifier.conv1.weight'].dtype == torch.float64


@pytest.mark.parametrize('first, then', [(2, 1), (1, 2)])
def test_resuming_with_another_number_of_processes(tmp_path, first, then):
    config = dumped(tiny_cfg('unused', epochs=2), tmp_path / 'config.py')
    work = tmp_path / 'work'
    run_ranks(first, config, work, cfg_options={'train_cfg.max_epochs': 1})
    run_ranks(then, config, work, resume='auto')
    content = read(work / 'epoch_2.pth')
    assert content['meta']['epoch'] == 2
    # 64 images in batches of 16.
    assert content['meta']['iter'] == 4 // first + 4 // then
    assert len(content['random_states']) == then
    log = ''.join(p.read_text() for p in work.glob('*/*.log'))
    assert f'saved by {first} process' in log
