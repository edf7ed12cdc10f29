# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import subprocess
import sys

import pytest
import torch
from tiny import DIGITS, ROOT

from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.data import random_batches, real_batches
from mmvanilla.utils.errors import UserError

# Types are classes, and a base is imported.
NEW_BASE = '''
from mmpretrain.models import ImageClassifier, LabelSmoothLoss
from mmvanilla.models import VanillaNet, VanillaNetHead

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(num_classes=10, mean=[77.9], std=[95.9]),
    backbone=dict(
        type=VanillaNet, arch=dict(dims=[4, 8, 8], strides=[2, 1]),
        in_channels=1),
    head=dict(
        type=VanillaNetHead, num_classes=10, in_channels=8,
        loss=dict(type=LabelSmoothLoss, label_smooth_val=0.1)))
'''
NEW_STYLE = '''
from mmcv.transforms import Resize
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmpretrain.datasets import PackInputs
from mmvanilla.datasets import DigitsDataset

with read_base():
    from .base import *

val_dataloader = dict(
    batch_size=8, num_workers=0,
    dataset=dict(
        type=DigitsDataset, split='val',
        pipeline=[dict(type=Resize, scale=(32, 32)), dict(type=PackInputs)]),
    sampler=dict(type=DefaultSampler, shuffle=False))
'''


@pytest.mark.parametrize('text, message', [
    ('x = nothing', "NameError: name 'nothing' is not defined"),
    ('x = 1 / 0', 'ZeroDivisionError: division by zero'),
    ("x = '", 'SyntaxError: '),
    ("_base_ = './nothing.py'", 'nothing.py'),
    ("_base_ = 'nothing::a/b.py'", 'does not support to load nothing config'),
    ("custom_imports = dict(imports=['nothing'], allow_failed_imports=False)",
     'ImportError: Failed to import nothing'),
    ('with read_base():\n    from .nothing import *', 'nothing.py not found!'),
])
def test_read_config_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(str(path))
    assert str(error.value).startswith(f'cannot read {path} as a config: ')
    assert message in str(error.value) and '\n' not in str(error.value)


def test_read_config_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='no config at .*a.py'):
        read_config(str(tmp_path / 'a.py'))


@pytest.mark.parametrize('line, scope', [
    ("default_scope = 'mmdet'", 'mmdet'),
    ("default_scope = 'mmseg'", 'mmseg'),
])
def test_read_config_of_a_toolbox_that_is_missing(tmp_path, monkeypatch, line,
                                                  scope):
    (tmp_path / 'a.py').write_text(line)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=f'{scope} is not installed'):
        read_config(str(tmp_path / 'a.py'))


def test_read_config_under_an_ascii_locale(tmp_path):
    """With braces in the folder, which mmengine might substitute."""
    folder = tmp_path / 'a {{ b }}'
    folder.mkdir()
    (folder / 'a.py').write_text(
        f"# Größe, 数字\n_base_ = '{DIGITS}'\nname = '数字'\n",
        encoding='utf-8')
    code = ('from mmvanilla.utils.building import read_config\n'
            "cfg = read_config('a {{ b }}/a.py')\n"
            'print(ascii(cfg.name), cfg.model.backbone.in_channels)')
    done = subprocess.run([sys.executable, '-c', code],
                          cwd=tmp_path,
                          env=dict(
                              os.environ,
                              PYTHONPATH=str(ROOT),
                              LC_ALL='C',
                              PYTHONUTF8='0',
                              PYTHONCOERCECLOCALE='0'),
                          capture_output=True,
                          text=True)
    assert done.stdout.endswith("'\\u6570\\u5b57' 1\n"), done.stderr


def test_new_style_config(tmp_path):
    (tmp_path / 'base.py').write_text(NEW_BASE)
    (tmp_path / 'new.py').write_text(NEW_STYLE)
    cfg = read_config(str(tmp_path / 'new.py'))
    model = build_model(cfg)
    for batches in (real_batches(cfg, 12), random_batches(cfg, 2)):
        data = model.data_preprocessor(batches[0], False)
        assert data['inputs'].shape[1] == 1
        assert torch.isfinite(model(**data, mode='tensor')).all()


def test_data_preprocessor_at_the_top_level():
    """Where mmengine's runner looks, and configs of ImageNet have it."""
    cfg = read_config(
        str(DIGITS.parent / 'vanillanet-6_8xb128_in1k.py'),
        dict(model=dict(
            backbone=dict(
                arch=dict(dims=[4, 8, 8], strides=[2, 1], _delete_=True)),
            head=dict(in_channels=8))))
    mean = build_model(cfg).data_preprocessor.mean
    assert mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
