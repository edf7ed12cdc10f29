# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import re
import shutil
from functools import partial
from pathlib import Path

import mmpretrain
import pytest
import torch
from golden import random_authors_weights
from mmengine.fileio import load as load_results
from mmengine.runner import checkpoint
from PIL import Image
from tiny import (
    ROOT,
    assert_same_weights,
    call_tool,
    free_port,
    read,
    refused,
    run_tool,
    tiny_cfg,
    train,
)


@pytest.fixture
def call(monkeypatch, capfd):
    """Run a tool in this process and return what it printed."""
    return partial(call_tool, monkeypatch, capfd)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    cfg = tiny_cfg(folder / 'work')
    cfg.dump(folder / 'config.py')
    train(cfg)
    return folder


def test_train_writes_where_it_is_told(tmp_path, call):
    tiny_cfg('unused', epochs=1).dump(tmp_path / 'config.py')
    printed = call(
        'train.py', 'config.py', '--work-dir', 'elsewhere', '--no-validate',
        '--no-pin-memory', '--no-persistent-workers', '--amp',
        '--auto-scale-lr', cwd=tmp_path)
    assert (tmp_path / 'elsewhere' / 'epoch_1.pth').exists()
    assert 'Epoch(val)' not in printed
    assert 'training goes on in float32' in printed
    # From a batch of 64 to one of 16.
    assert 'multiplied by 0.25, for a batch of 16 instead of 64' in printed


@pytest.mark.parametrize('options', [
    pytest.param(['--compile'], marks=pytest.mark.slow),
    ['--compile', 'eager'], ['--tta']], ids=' '.join)
def test_test(trained, tmp_path, call, options):
    printed = call(
        'test.py', trained / 'config.py', trained / 'work' / 'epoch_4.pth',
        '--work-dir', tmp_path, '--deploy', *options, cwd=tmp_path)
    assert re.search(r'accuracy/top1: \d', printed)
    assert 'Merged 7 layers' in printed


def test_out_and_show_dir(trained, tmp_path, call):
    """Of images of the same name in the folders of their classes."""
    for folder in '0123456789':
        (tmp_path / 'val' / folder).mkdir(parents=True)
        Image.new('L', (32, 32), 100).save(tmp_path / 'val' / folder / 'x.png')
    test = ['test.py', trained / 'config.py',
            trained / 'work' / 'epoch_4.pth', '--data', tmp_path]
    call(*test, '--show-dir', 'shown', '--interval', 2, '--out', 'pred.pkl',
         cwd=tmp_path)
    assert {path.name for path in (tmp_path / 'shown').rglob('*.png')} == {
        f'val_{i}_x.png_0.png' for i in range(0, 10, 2)}
    assert [x['img_path'] for x in load_results(tmp_path / 'pred.pkl')] == [
        str(tmp_path / 'val' / str(i) / 'x.png') for i in range(10)]
    (tmp_path / 'metrics.json').write_text('of an earlier test')
    call(*test, '--out', 'metrics.json', '--out-item', 'metrics', cwd=tmp_path)
    assert {*json.loads((tmp_path / 'metrics.json').read_text())} == {
        'accuracy/top1'}


def test_refusals(trained, tmp_path, monkeypatch, capfd):
    config, done = trained / 'config.py', trained / 'work' / 'epoch_4.pth'
    half = trained / 'work' / 'epoch_2.pth'
    (tmp_path / 'text.pth').write_text('hello')
    shutil.copy(done, tmp_path / 'model.pkl')
    (tmp_path / 'folder.pkl').mkdir()
    content = read(done)
    torch.save({k: content[k] for k in ('state_dict', 'meta')},
               tmp_path / 'weights.pth')
    for args, message in [
        (['test.py', config, half, '--deploy'], r'lambda is 0\.333'),
        (['test.py', config, 'text.pth'], r'text\.pth'),
        (['test.py', config, done, '--cfg-options',
          'model.backbone.act_num=2'],
         r'does not fit the config: .*backbone\.stem\.act\.conv\.weight.*'
         r'\[4, 1, 7, 7\].*\[4, 1, 5, 5\]'),
        (['test.py', config, done, '--out', 'x.txt'], r'must end in \.pkl'),
        (['test.py', config, 'model.pkl', '--out', 'model.pkl'],
         r'cannot write to model\.pkl: this command reads it'),
        (['test.py', config, done, '--out', 'folder.pkl'], 'not a regular'),
        (['test.py', config, done, '--out-item', 'pred'], 'needs --out'),
        (['test.py', config, done, '--compile'], '--compile needs --deploy'),
        (['train.py', config, '--cfg-options', 'train_cfg.max_epochs', '1'],
         "takes KEY=VALUE.*'train_cfg.max_epochs'"),
        (['train.py', config, '--work-dir', 'nothing', '--resume'],
         'nothing to resume in nothing.*without --resume'),
        (['train.py', config, '--resume', 'weights.pth'],
         r'cannot resume from weights\.pth.*load_from=weights\.pth'),
        (['train.py', 'none.py'], r'no config at none\.py'),
        (['train.py', ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py'],
         '^error: no data for ImageNet: looked for the folder data/imagenet, '
         'which must hold train, with one folder of images for each class; '
         'a folder of your own is given by --data$'),
    ]:
        error = refused(monkeypatch, capfd, *args, cwd=tmp_path)
        assert re.search(message, error), error


@pytest.mark.parametrize('part, args, message', [
    ('optim_wrapper', ['train.py', '--amp'], 'no optim_wrapper, which'),
    ('train_dataloader', ['train.py', '--data', '.'], 'no train_dataloader'),
    ('train_dataloader.batch_size', ['train.py', '--auto-scale-lr'],
     r'--auto-scale-lr needs .*train_dataloader\.batch_size'),
    ('test_cfg', ['test.py', '--amp'], 'no test_cfg, which testing needs'),
    ('test_dataloader.dataset.pipeline', ['test.py', '--tta'],
     'no pipeline in its test_dataloader, which --tta needs'),
    ('visualizer', ['test.py', '--show-dir', 'shown'], 'or a visualizer'),
    ('default_hooks.visualization', ['test.py', '--show'],
     r'lacks a default_hooks\.visualization'),
], ids=str)
def test_a_config_without_what_an_option_changes(
        part, args, message, trained, tmp_path, monkeypatch, capfd):
    cfg = tiny_cfg('work')
    *parents, last = part.split('.')
    node = cfg
    for name in parents:
        node = node[name]
    if part.endswith('batch_size'):
        node.batch_sampler = dict(
            type='BatchSampler', drop_last=False, batch_size=node.batch_size)
        cfg.auto_scale_lr = dict(base_batch_size=16)
    node.pop(last)
    cfg.dump(tmp_path / 'config.py')
    checkpoint = trained / 'work' / 'epoch_4.pth'
    tool, *options = args
    files = ['config.py'] + [checkpoint] * (tool != 'train.py')
    error = refused(monkeypatch, capfd, tool, *files, *options, cwd=tmp_path)
    assert re.search(message, error), error



@pytest.mark.slow
def test_two_processes(tmp_path, call):
    """They start from a checkpoint's name and keep the same weights."""
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.custom_imports.imports.append('ranks')
    # 64 images, 8 for each of 2 processes: 4 iterations are an epoch.
    cfg.train_dataloader.batch_size = 8
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.train_cfg = dict(by_epoch=False, max_iters=16, val_interval=16)
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=16)
    cfg.custom_hooks.append(dict(type='SaveEachRank', folder=str(tmp_path)))
    cfg.load_from = 'vanillanet://vanillanet_5'
    cfg.dump(tmp_path / 'config.py')
    file = tmp_path / 'hub' / 'checkpoints' / 'vanillanet_5.pth'
    file.parent.mkdir(parents=True)
    weights = random_authors_weights([4, 8, 8], num_classes=10)
    weights['stem1.0.weight'] = weights['stem1.0.weight'][:, :1]
    torch.save(dict(model_ema=weights), file)
    done = run_tool('dist_train.sh', 'config.py', 2, cwd=tmp_path,
                    PORT=free_port(), TORCH_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert 'vanillanet_5' in done.stdout
    ranks = [torch.load(tmp_path / f'rank{i}.pth', weights_only=True)
             for i in range(2)]
    expected = [[e / 3] * 4 for e in (0, 1, 2, 3) for _ in range(4)]
    assert [rank['lams'] for rank in ranks] == [expected] * 2
    # Norms count each process's own batches; only weights are the same.
    assert_same_weights(*({k: v for k, v in rank['state_dict'].items()
                           if 'running' not in k} for rank in ranks))

    done = run_tool('dist_test.sh', 'config.py', 'work/iter_16.pth', 2,
                    '--deploy', cwd=tmp_path, PORT=free_port())
    assert done.returncode == 0, done.stderr
    assert 'accuracy/top1' in done.stdout + done.stderr
    table = re.findall(r'^\|.*', done.stdout, re.M)
    assert table == re.findall(r'^\|.*', call(
        'test.py', 'config.py', 'work/iter_16.pth', cwd=tmp_path), re.M) != []


def test_new_style_config(tmp_path, call):
    """Pure Python, with bases and classes for types, from train to deploy."""
    for name in ('base', 'config'):
        shutil.copy(ROOT / 'tests/data' / f'new_style_{name}.py', tmp_path)
    call('train.py', 'new_style_config.py', '--work-dir', 'work', '--amp',
         '--auto-scale-lr', cwd=tmp_path)
    assert (tmp_path / 'work' / 'deploy.pth').is_file()
    call('test.py', 'new_style_config.py', 'work/epoch_2.pth', '--deploy',
         '--tta', cwd=tmp_path)
    call('test.py', 'work/deploy.py', 'work/deploy.pth', '--show-dir', 'shown',
         cwd=tmp_path)


def test_mmpretrains_own_tools(tmp_path, call, monkeypatch):
    """They take our configs without further options."""
    if not hasattr(checkpoint, 'get_torch_safe_globals'):
        pytest.skip('mmengine 0.10.7 cannot read its own checkpoints')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    cfg = tiny_cfg('unused', epochs=2, decay_epochs=1)
    cfg.custom_hooks.append(dict(type='ReparameterizeHook', checkpoint='last'))
    cfg.dump(tmp_path / 'small.py')
    tools = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
    for tool, *args in (('train.py', 'small.py', '--work-dir', 'work'),
                        ('test.py', 'small.py', 'work/epoch_2.pth', '--tta'),
                        ('test.py', 'work/deploy.py', 'work/deploy.pth'),
                        ('visualization/vis_scheduler.py', 'small.py',
                         '--not-show', '--save-path', 'lr.png')):
        call(tools / tool, *args, cwd=tmp_path)
    merged = read(tmp_path / 'work' / 'deploy.pth')['state_dict']
    assert not [key for key in merged if '.norm' in key]
    assert Image.open(tmp_path / 'lr.png').size > (100, 100)
