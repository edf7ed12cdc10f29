# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Training and testing from a config's file, in this process or in forks."""
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from golden import random_authors_weights
from mmengine.fileio import load as load_results
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from PIL import Image
from tiny import (
    free_port,
    lams,
    read,
    run_ranks,
    run_tool,
    tiny_cfg,
)

from mmvanilla.engine.runs import (
    check_resumable,
    find_checkpoint,
    train,
)
from mmvanilla.engine.runs import test as evaluate
from mmvanilla.utils.errors import UserError

_names = 0


def name() -> str:
    """Two runs of one second must not share a name."""
    global _names
    _names += 1
    return f'experiment_name=run_{_names}'


def dumped(cfg, path) -> str:
    cfg.dump(path)
    return str(path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a config and the work dir of its run."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = tiny_cfg(folder / 'work')
    cfg.default_hooks.checkpoint.save_best = 'accuracy/top1'
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.2, update_buffers=True))
    train(dumped(cfg, folder / 'config.py'), cfg_options=[name()])
    return folder


# --------------------------------------------------------------------- resume


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize('damage, expected, passed_over', [
    (lambda w: None, 'epoch_4.pth', 0),
    (lambda w: (w / 'last_checkpoint').write_bytes(b'\xff\0'),
     'epoch_4.pth', 0),
    (lambda w: cut(w / 'epoch_4.pth'), 'epoch_3.pth', 1),
    (lambda w: [cut(w / f'epoch_{i}.pth') for i in (3, 4)],
     'epoch_2.pth', 2),
    (lambda w: (w / 'epoch_4.pth').unlink(), 'epoch_3.pth', 0),
    # Of an earlier run in the same folder.
    (lambda w: [os.utime(w / f'epoch_{i}.pth', (1, 1)) for i in (3, 4)],
     'epoch_2.pth', 0),
])
def test_finds_the_newest_that_reads_whole(trained, tmp_path, damage,
                                           expected, passed_over):
    work = tmp_path / 'copy'
    shutil.copytree(trained / 'work', work)
    damage(work)
    found, reasons = find_checkpoint(str(work))
    assert found == str(work / expected)
    assert len(reasons) == passed_over


def test_nothing_to_resume(trained, tmp_path):
    for i in (1, 2):
        shutil.copy(trained / f'work/epoch_{i}.pth', tmp_path)
        cut(tmp_path / f'epoch_{i}.pth')
    with pytest.raises(UserError, match='nothing to resume.*epoch_2.*epoch_1'):
        find_checkpoint(str(tmp_path))
    best = next(trained.glob('work/best_*.pth'))
    with pytest.raises(UserError, match='no state of the optimizer'):
        check_resumable(str(best))


def test_config_in_a_checkpoint_is_not_run(trained, tmp_path):
    """mmengine evaluates it when it resumes."""
    content = read(trained / 'work' / 'epoch_4.pth')
    content['meta']['config'] = f"open('{tmp_path / 'ran'}', 'w')"
    torch.save(content, tmp_path / 'epoch_4.pth')
    train(str(trained / 'config.py'), work_dir=str(tmp_path), resume='auto',
          cfg_options=[name(), 'train_cfg.max_epochs=5'])
    assert (tmp_path / 'epoch_5.pth').is_file()
    assert not (tmp_path / 'ran').exists()


# ----------------------------------------------------------------- evaluation


def test_deploy_scores_as_the_average_does(trained, tmp_path):
    checkpoint = str(trained / 'work' / 'epoch_4.pth')
    scores = []
    for deploy in (False, True):
        out = str(tmp_path / f'{deploy}.pkl')
        metrics = evaluate(
            str(trained / 'config.py'), checkpoint, deploy=deploy, out=out,
            work_dir=str(tmp_path / 'work'), cfg_options=[name()])
        scores.append(np.stack(
            [r['pred_score'].numpy() for r in load_results(out)]))
    np.testing.assert_allclose(*scores, atol=1e-5)
    log = next((trained / 'work').glob('*/vis_data/scalars.json'))
    scalars = [json.loads(x) for x in log.read_text().splitlines()]
    assert metrics['accuracy/top1'] == [
        x['accuracy/top1'] for x in scalars if 'accuracy/top1' in x][-1]


@pytest.mark.parametrize('item', ['pred', 'metrics'])
def test_results_are_written_whole(trained, tmp_path, item, monkeypatch):
    """A process that fails while it writes leaves what was there."""

    def fail(obj, file):
        with open(file, 'w') as half:
            half.write('half of it')
        raise ZeroDivisionError

    monkeypatch.setattr('mmvanilla.engine.runs.mmengine.dump', fail)
    out = tmp_path / 'results.pkl'
    out.write_text('of an earlier test')
    with pytest.raises(ZeroDivisionError):
        evaluate(
            str(trained / 'config.py'), str(trained / 'work/epoch_4.pth'),
            work_dir=str(tmp_path / 'work'), out=str(out), out_item=item,
            cfg_options=[name()])
    assert out.read_text() == 'of an earlier test'
    assert sorted(os.listdir(tmp_path)) == ['results.pkl', 'work']


# -------------------------------------------------------------- learning rate


def test_auto_scale_lr(tmp_path, capfd):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1)
    cfg.auto_scale_lr = dict(base_batch_size=64, rule='sqrt')
    cfg.train_dataloader.dataset.indices = 32
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(head=dict(lr_mult=3))
    config = dumped(cfg, tmp_path / 'config.py')
    rates = []
    for path in (config, config, tmp_path / 'work' / 'config.py'):
        runner = train(str(path), auto_scale_lr=bool(rates), validate=False,
                       cfg_options=[name()])
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


# --------------------------------------------------------------------- errors


@HOOKS.register_module(force=True)
class Interrupt(Hook):
    """Ctrl-C."""

    def before_train_epoch(self, runner):
        raise KeyboardInterrupt


@pytest.mark.parametrize('change, message', [
    (dict(custom_hooks=[dict(type='Interrupt')]), 'interrupted; .*--resume'),
    (dict(train_dataloader=dict(dataset=dict(indices=17))),
     'a batch of one image: set train_dataloader.drop_last'),
    (dict(train_dataloader=dict(prefetch_factor=2)), 'needs workers'),
])
def test_a_run_that_a_user_can_correct(tmp_path, change, message):
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.merge_from_dict(change)
    with pytest.raises(UserError, match=message):
        train(dumped(cfg, tmp_path / 'config.py'), cfg_options=[name()])


@pytest.mark.parametrize('workers', [0, 2])
def test_an_unreadable_image_is_named(tmp_path, workers):
    for i in range(8):
        folder = tmp_path / 'data' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (i, 0, 0)).save(folder / f'{i}.png')
    broken = tmp_path / 'data' / 'b' / '1.png'
    broken.write_bytes(b'no image')
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    cfg.model.backbone.in_channels = 3
    cfg.train_dataloader.update(batch_size=4, num_workers=workers)
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'data'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    with pytest.raises(UserError) as error:
        train(dumped(cfg, tmp_path / 'config.py'), validate=False,
              cfg_options=[name()])
    assert str(error.value) == f'cannot read an image: {broken}'


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


@pytest.mark.slow
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_processes_start_from_a_named_checkpoint(tmp_path, launcher):
    """Two of torchrun, and one task of Slurm, without a network."""
    cfg = tiny_cfg('work', epochs=1, decay_epochs=1)
    cfg.load_from = 'vanillanet://vanillanet_5'
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(tmp_path / 'config.py')
    file = tmp_path / 'hub' / 'checkpoints' / 'vanillanet_5.pth'
    file.parent.mkdir(parents=True)
    weights = random_authors_weights([4, 8, 8], num_classes=10)
    weights['stem1.0.weight'] = weights['stem1.0.weight'][:, :1]
    torch.save(dict(model_ema=weights), file)
    port = free_port()
    if launcher == 'pytorch':
        done = run_tool('dist_train.sh', 'config.py', 2, cwd=tmp_path,
                        PORT=port, TORCH_HOME=str(tmp_path))
    else:
        done = run_tool(
            'train.py', 'config.py', '--launcher', 'slurm', cwd=tmp_path,
            TORCH_HOME=str(tmp_path), SLURM_PROCID='0', SLURM_NTASKS='1',
            SLURM_LOCALID='0', SLURM_NODELIST='here', MASTER_PORT=port,
            MASTER_ADDR='127.0.0.1')
    assert done.returncode == 0, done.stderr
    assert 'vanillanet_5' in done.stdout
    assert lams(read(tmp_path / 'work/epoch_1.pth')['state_dict']) == {0}
