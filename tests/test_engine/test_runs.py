# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Training and testing from a config's file, in this process or in forks."""
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load as load_results
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from PIL import Image
from tiny import read, run, tiny_cfg

from mmvanilla.engine.runs import find_checkpoint, train
from mmvanilla.engine.runs import test as evaluate
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a config and the work dir of its run."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = tiny_cfg(folder / 'work')
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.2, update_buffers=True))
    run(cfg, folder)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def of_an_earlier_run(work, *numbers):
    for i in numbers:
        content = read(work / f'epoch_{i}.pth')
        content['meta']['time'] = '20200101_000000'
        torch.save(content, work / f'epoch_{i}.pth')


@pytest.mark.parametrize('damage, order', [
    (lambda w: os.utime(w / 'epoch_4.pth', (1, 1)), '4321'),  # a copy
    (lambda w: (w / 'last_checkpoint').write_bytes(b'\xff\0'), '4321'),
    (lambda w: (w / 'epoch_4.pth').unlink(), '321'),
    (lambda w: of_an_earlier_run(w, 3, 4), '2143'),
])
def test_order_of_checkpoints_to_resume(trained, tmp_path, damage, order):
    """Each time the first is cut short, the next is found."""
    work = tmp_path / 'copy'
    shutil.copytree(trained / 'work', work)
    damage(work)
    for i, number in enumerate(order):
        path = work / f'epoch_{number}.pth'
        found, reasons = find_checkpoint(str(work))
        assert found == str(path) and len(reasons) == i
        cut(path)
    with pytest.raises(UserError, match='nothing to resume.*epoch_2.*epoch_1'):
        find_checkpoint(str(work))


def test_a_run_resumed_elsewhere_removes_no_file_of_others(trained, tmp_path):
    """Nor does it run the config in the checkpoint, as mmengine does."""
    cfg = tiny_cfg(tmp_path, epochs=5)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    for number in (3, 4):
        (tmp_path / f'epoch_{number}.pth').write_text('of somebody')
    content = read(trained / 'work' / 'epoch_4.pth')
    content['meta']['config'] = f"open('{tmp_path / 'ran'}', 'w')"
    torch.save(content, tmp_path / 'other.pth')
    run(cfg, tmp_path, resume=str(tmp_path / 'other.pth'))
    assert not (tmp_path / 'ran').exists()
    assert (tmp_path / 'epoch_5.pth').is_file()
    for number in (3, 4):
        assert (tmp_path / f'epoch_{number}.pth').read_text() == 'of somebody'


def test_testing_leaves_the_config_as_it_is(trained, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained / 'work', work)
    cfg = Config.fromfile(work / 'config.py')
    cfg.work_dir = str(work)
    cfg.dump(work / 'config.py')
    before = (work / 'config.py').read_text()
    evaluate(str(work / 'config.py'), str(work / 'epoch_4.pth'), tta=True,
             cfg_options=['test_dataloader.dataset.indices=16'])
    assert (work / 'config.py').read_text() == before


def test_deploy_scores_as_the_average_does(trained, tmp_path):
    checkpoint = str(trained / 'work' / 'epoch_4.pth')
    scores = []
    for deploy in (False, True):
        out = str(tmp_path / f'{deploy}.pkl')
        metrics = evaluate(
            str(trained / 'config.py'), checkpoint, deploy=deploy, out=out,
            work_dir=str(tmp_path / 'work'))
        scores.append(np.stack(
            [r['pred_score'].numpy() for r in load_results(out)]))
    np.testing.assert_allclose(*scores, atol=1e-5)
    log = next((trained / 'work').glob('*/vis_data/scalars.json'))
    scalars = [json.loads(x) for x in log.read_text().splitlines()]
    assert metrics['accuracy/top1'] == [
        x['accuracy/top1'] for x in scalars if 'accuracy/top1' in x][-1]


def test_results_are_written_whole(trained, tmp_path):
    """A test that fails leaves those of an earlier one."""
    cfg = Config.fromfile(trained / 'config.py')
    cfg.custom_hooks.append(dict(type='Interrupt'))
    out = tmp_path / 'results.pkl'
    out.write_text('of an earlier test')
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='interrupted; .*--resume'):
        evaluate(str(tmp_path / 'config.py'),
                 str(trained / 'work/epoch_4.pth'), out=str(out),
                 work_dir=str(tmp_path / 'work'))
    assert out.read_text() == 'of an earlier test'
    assert sorted(os.listdir(tmp_path)) == ['config.py', 'results.pkl', 'work']


def test_auto_scale_lr(tmp_path, capfd):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1)
    cfg.auto_scale_lr = dict(base_batch_size=64, rule='sqrt')
    cfg.train_dataloader.dataset.indices = 32
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(head=dict(lr_mult=3))
    config, rates = tmp_path / 'config.py', []
    cfg.dump(config)
    for path in (config, config, tmp_path / 'work' / 'config.py'):
        runner = train(str(path), auto_scale_lr=bool(rates), validate=False)
        rates.append(
            np.array([group['initial_lr'] for group in
                      runner.optim_wrapper.optimizer.param_groups]))
    assert len(set(rates[0])) == 2
    np.testing.assert_allclose(
        rates[1], rates[0] * math.sqrt(1 / 2), rtol=1e-12)
    # The config in the work dir says what batch its rate is for.
    np.testing.assert_allclose(rates[2], rates[1], rtol=1e-12)
    found = [x for x in ''.join(capfd.readouterr()).splitlines()
             if '--auto-scale-lr' in x]
    assert len(found) == 1 and 'The batch is 32 in all, and the' in found[0]


@HOOKS.register_module(force=True)
class Interrupt(Hook):
    """Ctrl-C."""

    def after_test_epoch(self, runner, metrics=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('content, message', [
    (b'no image', 'cannot read an image: {}'),
    (b'', 'cannot read an image, since its file is empty: "find FOLDER '
     '-size 0" lists such files')])
def test_an_unreadable_image(tmp_path, workers, content, message):
    for i in range(8):
        folder = tmp_path / 'data' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (i, 0, 0)).save(folder / f'{i}.png')
    broken = tmp_path / 'data' / 'b' / '1.png'
    broken.write_bytes(content)
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    cfg.model.backbone.in_channels = 3
    cfg.train_dataloader.update(batch_size=4, num_workers=workers)
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'data'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    with pytest.raises(UserError) as error:
        run(cfg, tmp_path, validate=False)
    assert str(error.value) == message.format(broken)
