# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import resource
import shutil

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny import assert_same_weights, read, tiny_cfg, train

from mmvanilla.utils.errors import UserError


def make_cfg(work, epochs, **checkpoint):
    cfg = tiny_cfg(work, epochs=epochs)
    cfg.default_hooks.checkpoint.update(
        dict(max_keep_ckpts=2, save_best='accuracy/top1'), **checkpoint)
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work dir of a run of three epochs."""
    work = tmp_path_factory.mktemp('run') / 'work'
    train(make_cfg(work, 3))
    return work


def names(folder):
    return {path.name for path in folder.glob('*.pth')}


def resume(cfg, checkpoint):
    cfg.resume, cfg.load_from = True, str(checkpoint)
    return train(cfg)


def test_keeps_as_many_as_it_is_told(tmp_path):
    """Also after a resume, which continues with the list of the file."""
    best = train(make_cfg(tmp_path, 3)).message_hub.get_info('best_ckpt')
    assert names(tmp_path) == {
        'epoch_2.pth', 'epoch_3.pth', best.rpartition('/')[2]}
    runner = resume(make_cfg(tmp_path, 5), tmp_path / 'epoch_3.pth')
    best = runner.message_hub.get_info('best_ckpt')
    assert names(tmp_path) == {
        'epoch_4.pth', 'epoch_5.pth', best.rpartition('/')[2]}
    assert (tmp_path / 'last_checkpoint').read_text() == str(
        tmp_path / 'epoch_5.pth')


def test_removes_nothing_but_its_own(run, tmp_path):
    """Whatever paths a resumed checkpoint names."""
    work, other = tmp_path / 'work', tmp_path / 'other'
    shutil.copytree(run, work)
    shutil.copytree(run, other)
    (work / 'weights.pth').touch()
    (work / 'epoch_0.pth').mkdir()
    (tmp_path / 'epoch_7.pth').touch()
    path = work / 'epoch_3.pth'
    content = read(path)
    info = content['message_hub']['runtime_info']
    content['message_hub']['runtime_info'] = info | dict(
        best_ckpt=str(next(other.glob('best_*.pth'))), best_score=-1.0,
        obsolete_ckpts=[str(other), '../other'],
        keep_ckpt_ids=[0, '../../epoch_7', '/../weights'])
    torch.save(content, work / 'new')
    (work / 'new').replace(path)  # whose tensors are mapped into memory
    before = names(work)
    resume(make_cfg(work, 5, max_keep_ckpts=1), path)
    assert names(other) == names(run)
    assert (tmp_path / 'epoch_7.pth').exists()
    assert names(work) - {'epoch_5.pth'} >= before


@HOOKS.register_module()
class FullDisk(Hook):
    """Let no file grow beyond a limit, from the fourth epoch on."""

    def after_train_epoch(self, runner):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, -1))


def test_full_disk_keeps_what_there_is(run):
    before = names(run)
    cfg = make_cfg(run, 4)
    cfg.custom_hooks.append(dict(type='FullDisk'))
    weights = read(run / 'epoch_3.pth')['state_dict']
    try:
        with pytest.raises(UserError, match='cannot write .*epoch_4.pth: '):
            resume(cfg, run / 'epoch_3.pth')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert names(run) == before
    assert_same_weights(read(run / 'epoch_3.pth')['state_dict'], weights)
