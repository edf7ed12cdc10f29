# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re

import pytest
import torch
from mmengine.config import Config
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
        cfg.custom_hooks.append(dict(type='EMAHook', update_buffers=True))
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


def test_best_or_last_where_best_does_not_merge(tmp_path, capfd):
    # The best is of the first epoch: later ones learn nothing.
    cfg = cfg_with_hook(tmp_path)
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    cfg.optim_wrapper.optimizer.lr = 0.0
    cfg.train_dataloader.dataset.indices = 16
    cfg.model.backbone.norm_eval = True
    runner = train(cfg)
    best = runner.message_hub.get_info('best_ckpt')
    out = ''.join(capfd.readouterr())
    if min(lams(read(best)['state_dict'])) < 1:
        assert 'before lambda reached 1 and cannot be merged' in out
        assert f'Merged {tmp_path}/epoch_4.pth' in out
    else:
        assert f'Merged {best}' in out
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
