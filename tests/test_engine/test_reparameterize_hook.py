# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from tiny import lams, read, tiny_cfg, train

from mmvanilla.checkpoints import load_weights
from mmvanilla.engine import ReparameterizeHook
from mmvanilla.utils.building import build_model
from mmvanilla.utils.errors import UserError


def cfg_with_hook(work_dir, **kwargs):
    cfg = tiny_cfg(work_dir)
    cfg.custom_hooks.append(dict(type='ReparameterizeHook', **kwargs))
    return cfg


@pytest.mark.parametrize('ema', [False, True])
def test_merges_the_last(tmp_path, ema):
    cfg = cfg_with_hook(tmp_path, checkpoint='last')
    if ema:
        # A short average, or all images would have nearly the same outputs.
        cfg.custom_hooks.append(
            dict(type='EMAHook', momentum=0.9, update_buffers=True))
    train(cfg)
    source = build_model(cfg)
    load_weights(source, str(tmp_path / 'epoch_4.pth'))

    # The config stands by itself, without the hooks of training.
    deploy_cfg = Config.fromfile(tmp_path / 'deploy.py')
    assert deploy_cfg.custom_hooks == []
    deployed = build_model(deploy_cfg)
    content = read(tmp_path / 'deploy.pth')
    deployed.load_state_dict(content['state_dict'], strict=True)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            deployed(x), source(x), rtol=1e-4, atol=1e-5)
    assert set(content) == {'state_dict', 'meta'}
    assert content['meta']['dataset_meta']['classes'] == tuple('0123456789')


@METRICS.register_module(force=True)
class Trend(BaseMetric):
    """Rises or falls with every evaluation."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.value, self.step = 0, step

    def process(self, data_batch, data_samples) -> None:
        self.results.append(None)

    def compute_metrics(self, results) -> dict:
        self.value += self.step
        return dict(trend=self.value)


@pytest.mark.parametrize('step', [1, -1])
def test_best_or_last_where_best_does_not_merge(tmp_path, capfd, step):
    cfg = cfg_with_hook(tmp_path)
    cfg.default_hooks.checkpoint.update(save_best='trend', rule='greater')
    cfg.val_evaluator = dict(type='Trend', step=step)
    best = train(cfg).message_hub.get_info('best_ckpt')
    out = ''.join(capfd.readouterr())
    if step > 0:  # the best is the last, with lambda 1
        assert lams(read(best)['state_dict']) == {1}
        assert f'Merged {best}' in out
    else:
        assert lams(read(best)['state_dict']) == {0}
        assert 'before lambda reached 1 and cannot be merged' in out
        assert f'Merged {tmp_path}/epoch_4.pth' in out
    assert (tmp_path / 'deploy.pth').exists()


def test_training_cut_short_says_why_it_does_not_merge(tmp_path, capfd):
    """As by EarlyStoppingHook: training ends well, and nothing is merged."""
    cfg = cfg_with_hook(tmp_path, checkpoint='last')
    cfg.custom_hooks[0].decay_epochs = 10
    cfg.custom_hooks.append(
        dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=1,
             min_delta=100))
    train(cfg)
    assert re.search(r'Nothing was merged: training ended before lambda '
                     r'reached 1 \(it is 0\.1 in .*epoch_2\.pth\)',
                     ''.join(capfd.readouterr()))
    assert not (tmp_path / 'deploy.pth').exists()


def test_no_checkpoint(tmp_path):
    cfg = cfg_with_hook(tmp_path)
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    with pytest.raises(UserError, match='found no checkpoint'):
        train(cfg)


def test_wrong_choice():
    with pytest.raises(UserError, match="'best' or 'last'.*'first'"):
        ReparameterizeHook(checkpoint='first')
