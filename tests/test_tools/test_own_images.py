# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a folder of images to a merged network that labels a new one."""
import json
import re
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config
from photos import CLASSES, photo, write_photos
from tiny import ROOT, call_tool, refused

from mmvanilla.engine.predict import main


def test_own_images(tmp_path, monkeypatch, capfd):
    write_photos(tmp_path / 'photos', per_class=25)
    # The recipe with a narrow network of random weights and small images.
    cfg = Config.fromfile(ROOT / 'configs/vanillanet/vanillanet-6_finetune.py')
    cfg.model.backbone.arch = dict(dims=[16, 32, 64, 64], strides=[2, 2, 1])
    cfg.model.head.in_channels = 64
    cfg.load_from = None
    cfg.optim_wrapper.optimizer.lr = 4e-3
    cfg.train_cfg.update(max_epochs=12, val_interval=4)
    cfg.default_hooks.checkpoint.interval = 4
    cfg.randomness = dict(seed=0)
    cfg.train_dataloader.dataset.pipeline[1].scale = 48
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        if name != 'train':
            loader.dataset.pipeline[1].scale = 54
            loader.dataset.pipeline[2].crop_size = 48
    cfg.dump(tmp_path / 'narrow.py')

    def tool(*args):
        return call_tool(monkeypatch, capfd, *args, cwd=tmp_path)

    def accuracy(*args):
        tool('test.py', *args, '--out', 'out.json', '--out-item', 'metrics')
        return json.loads(Path('out.json').read_text())['accuracy/top1']

    log = tool('train.py', 'narrow.py', '--data', 'photos', '--check-images')
    assert ('1 of 101 images are unreadable and are left out: '
            'checks/broken.jpg') in log
    assert 'classes   4: checks, dots, rings, stripes' in log
    file, = Path('work_dirs/narrow').glob('*/*.log')
    assert '1 of 101 images are unreadable' in file.read_text()
    assert '--balance is for the images of --data' in refused(
        monkeypatch, capfd, 'train.py', 'narrow.py', '--balance',
        cwd=tmp_path)

    # The second command is what the first one says is next.
    command = re.search(r'next +(mmvanilla-predict .*)', log)[1].split()
    photo('rings', np.random.default_rng(12345)).save('new.png')
    for images, end in (('new.png', None), ('photos', -2)):  # not drawn
        monkeypatch.setattr(sys, 'argv', [command[0], images, *command[2:end]])
        main()
    assert Path('predictions/new.png').is_file()
    right = re.findall(r'\| (\w+)/\w+\.\w+ +\| \1 ', capfd.readouterr().out)
    assert set(right) == set(CLASSES) and len(right) > 90  # of 100

    run = tmp_path / 'work_dirs/narrow'
    best, = run.glob('best*.pth')
    assert accuracy(run / 'deploy.py', run / 'deploy.pth') >= 90
    # The copy in the work dir has the images and the classes.
    assert accuracy(run / 'narrow.py', best) >= 90
    # The original config knows of a thousand classes.
    assert accuracy('narrow.py', best, '--data', 'photos', '--check-images',
                    '--deploy') >= 90

    (tmp_path / 'photos/spirals').mkdir()
    for name, out in (('reparam.py', 'out.pth'), ('export.py', 'out.onnx')):
        error = refused(monkeypatch, capfd, name, 'narrow.py', best, out,
                        '--data', 'photos', cwd=tmp_path)
        assert 'spirals, which the network was not trained for' in error
    assert not list(tmp_path.glob('out.[op]*'))
