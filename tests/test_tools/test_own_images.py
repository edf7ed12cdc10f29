# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a folder of images to a merged network that labels a new one."""
import json
import re
import sys

import numpy as np
import pytest
from mmengine.config import Config
from photos import CLASSES, photo, write_photos
from tiny import ROOT, call_tool, refused, run_tool

from mmvanilla.engine.predict import main

FINETUNE = ROOT / 'configs/vanillanet/vanillanet-6_finetune.py'


def narrow_config(path) -> None:
    """The recipe with a narrow network, images of 64 x 64, 10 epochs."""
    cfg = Config.fromfile(FINETUNE)
    cfg.model.backbone.arch = dict(dims=[16, 32, 64, 64], strides=[2, 2, 1])
    cfg.model.head.in_channels = 64
    # From random weights, thus with larger steps.
    cfg.load_from = None
    cfg.optim_wrapper.optimizer.lr = 4e-3
    cfg.train_cfg.max_epochs = 10
    cfg.param_scheduler[1].update(T_max=9, end=10)
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


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    write_photos(folder / 'photos')
    narrow_config(folder / 'narrow.py')
    done = run_tool('train.py', 'narrow.py', '--data', 'photos',
                    '--check-images', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, next(
        (folder / 'work_dirs/narrow').glob('best*.pth'))


def accuracy(folder) -> float:
    metrics = json.loads((folder / 'out.json').read_text())
    assert set(metrics) == {'accuracy/top1'}
    return metrics['accuracy/top1']


def test_the_commands(trained, monkeypatch, capfd):
    folder, log, _ = trained
    assert ('1 of 161 images are unreadable and are left out: '
            'checks/broken.jpg') in log
    assert 'classes   4: checks, dots, rings, stripes' in log
    # The second command is what the first one says is next.
    command = re.search(r'next +(mmvanilla-predict .*)', log)[1].split()
    monkeypatch.chdir(folder)
    photo('rings', np.random.default_rng(12345)).save('new.png')
    for images, options in (('new.png', command[2:]),
                            ('photos', command[2:-2])):
        monkeypatch.setattr(sys, 'argv', [command[0], images, *options])
        main()
    assert (folder / 'predictions' / 'new.png').is_file()
    right = re.findall(r'\| (\w+)/\w+\.\w+ +\| \1 ', capfd.readouterr().out)
    assert set(right) == set(CLASSES) and len(right) > 144  # of 160

    deploy = folder / 'work_dirs/narrow/deploy.py'
    call_tool(monkeypatch, capfd, 'test.py', deploy, deploy.with_suffix(
        '.pth'), '--out', 'out.json', '--out-item', 'metrics', cwd=folder)
    assert accuracy(folder) >= 90


def test_the_copy_in_the_work_dir_runs_again(trained, monkeypatch, capfd):
    """Without --data, on the same images and with the same classes."""
    log = call_tool(
        monkeypatch, capfd, 'train.py', 'work_dirs/narrow/narrow.py',
        '--work-dir', 'again', '--cfg-options', 'train_cfg.max_epochs=1',
        'custom_hooks=[]', 'param_scheduler=None', cwd=trained[0])
    assert 'classes   4: checks, dots, rings, stripes' in log
    assert re.search(r'data +129 for training, 31 for validation', log)


def test_other_tools_use_the_folder(trained, monkeypatch, capfd):
    """With the original config, which knows of a thousand classes."""
    folder, _, best = trained
    call_tool(
        monkeypatch, capfd, 'test.py', 'narrow.py', best, '--data', 'photos',
        '--check-images', '--deploy', '--out', 'out.json', '--out-item',
        'metrics', cwd=folder)
    assert accuracy(folder) >= 90


def test_mistakes(trained, tmp_path, monkeypatch, capfd):
    folder, _, best = trained
    config = folder / 'narrow.py'
    rng = np.random.default_rng(0)
    for name in ('rings', 'spirals'):
        (tmp_path / 'other' / name).mkdir(parents=True)
        for i in range(2):
            photo('rings', rng).save(tmp_path / 'other' / name / f'{i}.png')
    unknown = 'holds spirals, which the network was not trained for'
    for args, message in [
        (['train.py', config, '--data', 'other'], 'fewer than a batch of 8'),
        (['reparam.py', config, best, 'out.pth', '--data', 'other'], unknown),
        (['export.py', config, best, 'out.onnx', '--data', 'other'], unknown),
        (['test.py', config, best, '--data', folder / 'photos'],
         r'cannot read the image .*broken\.jpg'),
    ]:
        error = refused(monkeypatch, capfd, *args, cwd=tmp_path)
        assert re.search(message, error), error
    assert not list(tmp_path.glob('out*'))
