# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Damaged checkpoints and pointers; random states over a resume."""
import os
import shutil

import pytest
import torch
from tiny import assert_same_weights, read, tiny_cfg, train

from mmvanilla.engine.random_state import (
    get_random_state,
    seeded,
    set_random_state,
)
from mmvanilla.engine.resume import check_resumable, find_checkpoint
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work dir of a run of three epochs."""
    work = tmp_path_factory.mktemp('run') / 'work'
    train(random_cfg(work))
    return work


def random_cfg(work, **loader):
    """Dropout, random crops, and validation that draws random numbers."""
    cfg = tiny_cfg(work, epochs=3)
    crop = [dict(type='Resize', scale=36), dict(type='RandomCrop',
                                                crop_size=32),
            dict(type='PackInputs')]
    cfg.train_dataloader.dataset.pipeline = crop
    cfg.train_dataloader.update(loader)
    cfg.val_dataloader.dataset.pipeline = crop
    cfg.model.head.dropout = 0.3
    cfg.model.train_cfg = dict(augments=dict(type='Mixup', alpha=0.5))
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    return cfg


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize('damage, expected, passed_over', [
    (lambda w: None, 'epoch_3.pth', 0),
    (lambda w: (w / 'last_checkpoint').unlink(), 'epoch_3.pth', 0),
    (lambda w: (w / 'last_checkpoint').write_text(''), 'epoch_3.pth', 0),
    (lambda w: (w / 'last_checkpoint').write_bytes(b'\xff\0'),
     'epoch_3.pth', 0),
    (lambda w: (w / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth'),
     'epoch_3.pth', 0),
    (lambda w: cut(w / 'epoch_3.pth'), 'epoch_2.pth', 1),
    (lambda w: [cut(w / f'epoch_{i}.pth') for i in (2, 3)],
     'epoch_1.pth', 2),
    (lambda w: (w / 'epoch_3.pth').unlink(), 'epoch_2.pth', 0),
    # Left from an earlier run of the same folder.
    (lambda w: ((w / 'last_checkpoint').write_text('epoch_1.pth'),
                [os.utime(w / f'epoch_{i}.pth', (1, 1)) for i in (2, 3)]),
     'epoch_1.pth', 0),
])
def test_finds_the_newest_that_reads_whole(run, tmp_path, damage, expected,
                                           passed_over):
    work = tmp_path / 'copy'
    shutil.copytree(run, work)
    damage(work)
    found, reasons = find_checkpoint(str(work))
    assert found == str(work / expected)
    assert len(reasons) == passed_over


def test_nothing_that_reads(run, tmp_path):
    for i in (1, 2):
        shutil.copy(run / f'epoch_{i}.pth', tmp_path)
        cut(tmp_path / f'epoch_{i}.pth')
    with pytest.raises(UserError, match='nothing to resume.*epoch_2.*epoch_1'):
        find_checkpoint(str(tmp_path))


def test_weights_alone_are_not_resumed(run):
    best = next(run.glob('best_*.pth'))
    with pytest.raises(UserError, match='no state of the optimizer'):
        check_resumable(str(best))


def resume(cfg, checkpoint):
    cfg.resume, cfg.load_from = True, str(checkpoint)
    return train(cfg)


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_run_is_bit_identical(run, tmp_path, workers):
    """Also with workers, although the undisturbed run had none."""
    cfg = random_cfg(tmp_path, num_workers=workers)
    resume(cfg, run / 'epoch_1.pth')
    for epoch in (2, 3):
        assert_same_weights(
            read(run / f'epoch_{epoch}.pth')['state_dict'],
            read(tmp_path / f'epoch_{epoch}.pth')['state_dict'])


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_iterations_are_bit_identical(tmp_path, workers):

    def cfg(name):
        cfg = random_cfg(tmp_path / name, num_workers=workers)
        cfg.train_cfg = dict(by_epoch=False, max_iters=10, val_interval=5)
        cfg.param_scheduler = None
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
        cfg.default_hooks.checkpoint.update(interval=3, by_epoch=False)
        return cfg

    train(cfg('whole'))
    resume(cfg('resumed'), tmp_path / 'whole' / 'iter_3.pth')
    assert_same_weights(
        read(tmp_path / 'whole' / 'iter_10.pth')['state_dict'],
        read(tmp_path / 'resumed' / 'iter_10.pth')['state_dict'])


def test_a_copy_does_not_touch_the_original(run, tmp_path):
    original, copy = tmp_path / 'original', tmp_path / 'copy'
    train(random_cfg(original))
    shutil.copytree(original, copy)
    before = {p.name for p in original.glob('*.pth')}
    cfg = random_cfg(copy)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.train_cfg.max_epochs = 4
    runner = resume(cfg, copy / 'epoch_3.pth')
    assert {p.name for p in original.glob('*.pth')} == before
    assert (copy / 'last_checkpoint').read_text() == str(copy / 'epoch_4.pth')
    best = runner.message_hub.get_info('best_ckpt')
    assert best.startswith(str(copy)) and os.path.isfile(best)


def test_full_disk_keeps_what_there_is(run, tmp_path, monkeypatch):
    work = tmp_path / 'work'
    shutil.copytree(run, work)
    kept = (work / 'epoch_3.pth').read_bytes()

    def full(self, content):
        raise OSError(28, 'No space left on device')

    cfg = random_cfg(work)
    cfg.train_cfg.max_epochs = 4
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(UserError, match='cannot write .*: No space left'):
        resume(cfg, work / 'epoch_3.pth')
    assert (work / 'epoch_3.pth').read_bytes() == kept
    assert not (work / 'epoch_4.pth').exists()


def test_random_state_goes_round(tmp_path):
    torch.save(get_random_state(), tmp_path / 'state.pth')
    first = draw()
    set_random_state(read(tmp_path / 'state.pth'))
    with seeded(1, 2):
        inside = draw()
    assert draw() == first != inside
    with seeded(1, 2):
        assert draw() == inside
    with seeded(1, 3):
        assert draw() != inside


def draw():
    import random

    import numpy as np
    return random.random(), np.random.rand(), torch.rand(()).item()
