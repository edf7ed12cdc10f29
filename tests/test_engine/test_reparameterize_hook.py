# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS, METRICS
from PIL import Image
from tiny import lams, read, tiny_cfg, train

from mmvanilla.engine import ReparameterizeHook
from mmvanilla.engine.checks import check_outputs
from mmvanilla.utils.errors import UserError


def cfg_with_hook(work_dir, **kwargs):
    cfg = tiny_cfg(work_dir)
    cfg.custom_hooks.append(dict(type='ReparameterizeHook', **kwargs))
    return cfg


@METRICS.register_module(force=True)
class Trend(BaseMetric):
    """Rises or falls with every evaluation."""

    def __init__(self, step):
        super().__init__()
        self.value, self.step = 0, step

    def process(self, data_batch, data_samples):
        self.results.append(None)

    def compute_metrics(self, results):
        self.value += self.step
        return dict(trend=self.value)


@pytest.mark.parametrize('step', [1, -1])
def test_best_or_last_where_best_does_not_merge(tmp_path, capfd, step):
    cfg = cfg_with_hook(tmp_path)
    cfg.train_dataloader.dataset.indices = 16
    cfg.default_hooks.checkpoint.update(save_best='trend', rule='greater')
    cfg.val_evaluator = dict(type='Trend', step=step)
    best = train(cfg).message_hub.get_info('best_ckpt')
    out = ''.join(capfd.readouterr())
    assert lams(read(best)['state_dict']) == {step > 0}
    if step > 0:  # the best is the last, with lambda 1
        assert f'Merged {best}' in out
    else:
        assert f'Not merged: {best}: ' in out and 'lambda is 0' in out
        assert out.count(best) == 1
        assert f'Merged {tmp_path}/epoch_4.pth' in out
    assert (tmp_path / 'deploy.pth').exists()


@pytest.mark.parametrize('interval, message', [
    (1, 'Not merged: .*epoch_1.pth: .* its lambda is 0'),
    (-1, 'let CheckpointHook save one')])
def test_training_ends_well_without_a_merge(tmp_path, capfd, interval,
                                            message):
    cfg = cfg_with_hook(tmp_path, checkpoint='last')
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint.update(interval=interval, save_last=False)
    train(cfg)
    assert re.search(message, ' '.join(''.join(capfd.readouterr()).split()))
    assert not (tmp_path / 'deploy.pth').exists()


@pytest.mark.parametrize('name, reason', [
    ('deploy.py', 'not written by a merge'),
    ('deploy.pth', 'not written by a merge'),
    ('folder', 'not a regular file'), ('config', 'this command reads it')])
def test_files_of_others_are_kept(tmp_path, name, reason):
    """Found before training; the tool's run is in test_checks."""
    cfg = cfg_with_hook(tmp_path)
    path = tmp_path / 'deploy.py'
    path.write_text('x = 1\n')
    if name == 'folder':
        path.unlink()
        path.mkdir()
    elif name == 'config':
        cfg.load_from = str(path)
    elif name == 'deploy.pth':
        torch.save(dict(meta=dict(epoch=1)), path.with_name(name))
    with pytest.raises(UserError, match=f'{reason}.*another --work-dir'):
        check_outputs(SimpleNamespace(work_dir=tmp_path, cfg=cfg))


@HOOKS.register_module(force=True)
class CutImages(Hook):
    """What somebody else may do in the meantime."""

    def after_train(self, runner):
        for path in Path(runner.val_dataloader.dataset.data_root).rglob('*.*'):
            path.write_bytes(path.read_bytes()[:9])


def test_training_ends_well_where_samples_cannot_be_read(tmp_path, capfd):
    cfg = cfg_with_hook(tmp_path, checkpoint='last')
    cfg.train_cfg.max_epochs = cfg.custom_hooks[0].decay_epochs = 1
    cfg.custom_hooks = [*cfg.custom_hooks[1:], dict(type='CutImages')]
    cfg.model.backbone.in_channels = 3
    cfg.val_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'data'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    for label in 'ab':
        (tmp_path / 'data' / label).mkdir(parents=True)
        Image.new('RGB', (32, 32)).save(tmp_path / 'data' / label / 'x.png')
    cfg.train_dataloader.dataset = cfg.val_dataloader.dataset
    cfg.train_dataloader.batch_size = 2
    train(cfg)
    printed = ' '.join(''.join(capfd.readouterr()).split())
    assert re.search(r'Not merged: .*x\.png', printed)
    assert not [*tmp_path.glob('deploy*')]


def test_refuses_other_checkpoints():
    with pytest.raises(UserError, match="'best' or 'last'.*'first'"):
        ReparameterizeHook(checkpoint='first')
