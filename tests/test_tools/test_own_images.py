# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a folder of images to a merged network that labels a new one."""
import json
import re
import runpy
import sys

import numpy as np
import pytest
from mmengine.config import Config
from photos import CLASSES, photo, write_photos
from tiny import ROOT, refused, run_tool

FINETUNE = ROOT / 'configs/vanillanet/vanillanet-6_finetune.py'


def narrow_config(path) -> None:
    """The recipe with a narrow network, images of 64 x 64, 15 epochs."""
    cfg = Config.fromfile(FINETUNE)
    cfg.model.backbone.arch = dict(dims=[16, 32, 64, 64], strides=[2, 2, 1])
    cfg.model.head.in_channels = 64
    # From random weights, thus with larger steps.
    cfg.load_from = None
    cfg.optim_wrapper.optimizer.lr = 4e-3
    cfg.train_cfg.max_epochs = 15
    cfg.param_scheduler[1].update(T_max=14, end=15)
    cfg.randomness = dict(seed=0)
    cfg.train_dataloader.dataset.pipeline[1].scale = 64
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline[1].scale = 72
        loader.dataset.pipeline[2].crop_size = 64
    cfg.train_dataloader.batch_size = 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        loader.num_workers = 0
        loader.persistent_workers = False
    cfg.dump(path)


def run_here(monkeypatch, capfd, tool, *args) -> str:
    """What one of the tools prints, in this process."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    capfd.readouterr()
    runpy.run_path(str(ROOT / tool), run_name='__main__')
    return capfd.readouterr().out


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    write_photos(folder / 'photos')
    narrow_config(folder / 'narrow.py')
    done = run_tool('train.py', 'narrow.py', '--data', 'photos',
                    '--check-images', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_three_commands(trained, monkeypatch, capfd):
    folder, log = trained
    assert ('1 of 161 images are unreadable and are left out: '
            'checks/broken.jpg') in log
    assert 'classes   4: checks, dots, rings, stripes' in log
    assert re.search('merged +.*deploy.pth', log)
    # The second command is what the first one says is next.
    command = re.search(r'next +python (.*)', log)[1].split()
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(12345)
    for name in CLASSES:
        photo(name, rng).save(f'new_{name}.png')
        command[1] = f'new_{name}.png'
        table = run_here(monkeypatch, capfd, *command)
        assert re.search(rf'new_{name}\.png \| {name} ', table), table
        assert (folder / 'predictions' / f'new_{name}.png').is_file()

    work = folder / 'work_dirs/narrow'
    run_here(monkeypatch, capfd, 'tools/test.py', work / 'deploy.py',
             work / 'deploy.pth', '--out', 'out.json', '--out-item',
             'metrics')
    metrics = json.loads((folder / 'out.json').read_text())
    assert set(metrics) == {'accuracy/top1'}
    assert metrics['accuracy/top1'] >= 95


def test_the_copy_in_the_work_dir_runs_again(trained, monkeypatch, capfd):
    """Without --data, on the same images and with the same classes."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    log = run_here(
        monkeypatch, capfd, 'tools/train.py', 'work_dirs/narrow/narrow.py',
        '--work-dir', 'again', '--log', 'full', '--cfg-options',
        'train_cfg.max_epochs=1',
        'custom_hooks=[]', 'param_scheduler=None')
    assert 'classes   4: checks, dots, rings, stripes' in log
    assert re.search(r'data +129 for training, 31 for validation', log)
    for text in ('System environment:', 'Config:', 'paramwise_options'):
        assert text in log


def test_other_tools_take_the_folder(trained, monkeypatch, capfd):
    """With the original config, which knows of a thousand classes."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    best = next((folder / 'work_dirs/narrow').glob('best*.pth'))
    data = ['--data', 'photos', '--check-images']
    table = run_here(monkeypatch, capfd, 'tools/reparam.py', 'narrow.py',
                     best, 'merged.pth', *data)
    assert '31 real samples' in table
    run_here(monkeypatch, capfd, 'tools/test.py', 'narrow.py', best, *data,
             '--deploy', '--out', 'best.json', '--out-item', 'metrics')
    metrics = json.loads((folder / 'best.json').read_text())
    assert metrics['accuracy/top1'] >= 95


def test_mistakes(trained, tmp_path, monkeypatch, capfd):
    folder, _ = trained
    config = folder / 'narrow.py'
    best = next((folder / 'work_dirs/narrow').glob('best*.pth'))
    rng = np.random.default_rng(0)
    for name in ('rings', 'spirals'):
        (tmp_path / 'other' / name).mkdir(parents=True)
        for i in range(2):
            photo('rings', rng).save(tmp_path / 'other' / name / f'{i}.png')
    unknown = 'holds spirals, which the network was not trained for'
    for args, message in [
        (['train.py', config, '--data', 'nowhere'], 'no folder nowhere'),
        (['train.py', config, '--data', 'other'], 'fewer than a batch of 8'),
        (['test.py', config, best, '--data', 'other'], unknown),
        (['reparam.py', config, best, 'out.pth', '--data', 'other'], unknown),
        (['export.py', config, best, 'out.onnx', '--data', 'other'], unknown),
        (['test.py', config, best, '--data', folder / 'photos'],
         r'cannot read the image .*broken\.jpg'),
        (['plot.py', 'nowhere'], 'no folder nowhere'),
    ]:
        error = refused(monkeypatch, capfd, *args, cwd=tmp_path)
        assert re.search(message, error), error
    assert not list(tmp_path.glob('out*'))
