# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmpretrain's own tools take our configs without further options."""
from pathlib import Path

import mmpretrain
from PIL import Image
from tiny import DIGITS, call_tool, read

MIM = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
CONFIG = f'''
_base_ = '{DIGITS}'
model = dict(
    backbone=dict(
        arch=dict(dims=[16, 32, 32], strides=[2, 1], _delete_=True)),
    head=dict(in_channels=32))
train_dataloader = dict(dataset=dict(indices=256))
val_dataloader = dict(dataset=dict(indices=32))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3)
custom_hooks = [
    dict(type='DeepTrainingHook', decay_epochs=1),
    dict(type='ReparameterizeHook', checkpoint='last')
]
'''


def test_train_test_and_draw(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('MPLBACKEND', 'agg')
    (tmp_path / 'small.py').write_text(CONFIG)
    for tool, *args in (
        ('train.py', 'small.py', '--work-dir', 'work'),
        ('test.py', 'small.py', 'work/epoch_3.pth', '--tta'),
        ('test.py', 'work/deploy.py', 'work/deploy.pth'),
        ('visualization/vis_scheduler.py', 'small.py', '--not-show',
         '--save-path', 'lr.png'),
    ):
        call_tool(monkeypatch, capfd, MIM / tool, *args, cwd=tmp_path)
    merged = read(tmp_path / 'work' / 'deploy.pth')['state_dict']
    assert not [key for key in merged if '.norm' in key]
    assert Image.open(tmp_path / 'lr.png').size > (100, 100)
