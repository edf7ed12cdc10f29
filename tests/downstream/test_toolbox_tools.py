# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmdet's and mmseg's own tools take our configs without further options."""
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny import run_tool

NEEDS = 'the README tells how to install the toolboxes'
pytest.importorskip('mmcv.ops', reason=NEEDS, exc_type=ImportError)
pytest.importorskip('mmdet', reason=NEEDS)
pytest.importorskip('mmseg', reason=NEEDS)

from downstream.runs import CONFIGS  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg.apis import inference_model, init_model  # noqa: E402

from mmvanilla.utils.configs import read_config  # noqa: E402

# A few steps of training, and the shapes in the folder that configs name.
SHORT = {
    'retinanet': '''
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(dataset=dict(indices=8))
val_dataloader = dict(dataset=dict(indices=4))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=1))
''',
    'upernet': '''
train_cfg = dict(max_iters=2, val_interval=2)
train_dataloader = dict(dataset=dict(indices=8))
val_dataloader = dict(dataset=dict(indices=4))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='mmpretrain.DeepTrainingHook', decay_iters=1)]
''',
}


def write_config(name: str, shapes: Path, folder: Path) -> None:
    (folder / 'data').mkdir()
    (folder / 'data' / 'shapes').symlink_to(shapes)
    (folder / 'short.py').write_text(
        f"_base_ = '{CONFIGS}/{name}_shapes.py'\n{SHORT[name]}")


@pytest.mark.parametrize('toolbox, name, checkpoint', [
    ('mmdet', 'retinanet', 'epoch_1.pth'),
    ('mmseg', 'upernet', 'iter_2.pth'),
])
def test_train_and_test(toolbox, name, checkpoint, shapes, tmp_path):
    write_config(name, shapes, tmp_path)
    mim = Path(import_module(toolbox).__file__).parent / '.mim' / 'tools'
    for tool, *args in (
        ('train.py', 'short.py', '--work-dir', 'work'),
        ('test.py', 'short.py', f'work/{checkpoint}'),
        ('test.py', 'short.py', f'work/{checkpoint}', '--tta'),
    ):
        done = run_tool(mim / tool, *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]


def test_mmseg_inference_model_predicts_what_the_test_does(
        shapes, tmp_path, monkeypatch):
    """It takes the pipeline from another place of the config."""
    write_config('upernet', shapes, tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = init_model('short.py', device='cpu')
    cfg = read_config('short.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        (batch, ) = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    with torch.no_grad():
        tested = model.test_step(batch)
    for sample in tested:
        found = inference_model(model, sample.img_path).seg_logits.data
        assert found.std() > 0
        torch.testing.assert_close(
            found, sample.seg_logits.data, rtol=1e-5, atol=1e-5)
