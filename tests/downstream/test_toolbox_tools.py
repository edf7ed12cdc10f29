# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmdet's and mmseg's own tools take our configs without further options."""
from importlib import import_module
from pathlib import Path

import pytest
from downstream.runs import CONFIGS
from tiny import run_tool

# A few steps of training, and the shapes in the folder that configs name.
LENGTH = dict(
    retinanet='train_cfg = dict(max_epochs=1, val_interval=1)',
    upernet='train_cfg = dict(max_iters=2, val_interval=2)\n'
    "custom_hooks = [dict(type='mmpretrain.DeepTrainingHook', decay_iters=1)]")
SHORT = '''
train_dataloader = dict(dataset=dict(indices=8))
val_dataloader = dict(dataset=dict(indices=4))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=train_cfg['val_interval']))
'''


@pytest.mark.parametrize('toolbox, name, checkpoint',
                         [('mmdet', 'retinanet', 'epoch_1.pth'),
                          ('mmseg', 'upernet', 'iter_2.pth')])
def test_train_and_test(toolbox, name, checkpoint, shapes, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'shapes').symlink_to(shapes)
    (tmp_path / 'short.py').write_text(
        f"_base_ = '{CONFIGS}/{name}_shapes.py'\n{LENGTH[name]}\n{SHORT}")
    mim = Path(import_module(toolbox).__file__).parent / '.mim' / 'tools'
    for tool, *args in (
            ('train.py', 'short.py', '--work-dir', 'work'),
            ('test.py', 'short.py', f'work/{checkpoint}'),
            ('test.py', 'short.py', f'work/{checkpoint}', '--tta')):
        done = run_tool(mim / tool, *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
