# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What the tests of detectors and of segmentors share."""
import copy
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from tiny import ROOT, lams, read, run_tool

import mmvanilla  # noqa: F401

CONFIGS = ROOT / 'tests' / 'downstream' / 'configs'


@dataclass
class Run:
    """A model of narrow VanillaNet, trained and merged by the tools."""

    config: Path
    options: list
    work_dir: Path
    checkpoint: Path
    log: str
    merged: Path

    @property
    def merged_config(self) -> Path:
        return self.merged.with_suffix('.py')

    def lams(self) -> set:
        return lams(read(self.checkpoint)['state_dict'])

    def test(self, *options, model=None) -> dict:
        """Metrics of the trained model, as tools/test.py computes them.

        Or those of another checkpoint, or of a file that was exported.
        """
        given = ['--cfg-options', *self.options] if self.options else []
        return self._test(
            self.config, model or self.checkpoint, *options, *given)

    def test_merged(self, *options) -> dict:
        return self._test(self.merged_config, self.merged, *options)

    def _test(self, *args) -> dict:
        # Of its own: two processes may test at the same time.
        folder = Path(tempfile.mkdtemp(dir=self.work_dir))
        out = folder / 'metrics.json'
        tool('test.py', '--work-dir', folder, '--out', out, '--out-item',
             'metrics', *args, cwd=folder)
        return json.loads(out.read_text())


def tool(*args, cwd) -> str:
    """Run a tool that must succeed, and give what it printed."""
    done = run_tool(*args, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def train_and_merge(name: str, shapes: Path, work_dir: Path) -> Run:
    """Train tests/downstream/configs/NAME_shapes.py and merge it."""
    config = CONFIGS / f'{name}_shapes.py'
    options = data_options(name, shapes)
    log = tool('train.py', config, '--work-dir', work_dir, '--cfg-options',
               *options, cwd=work_dir)
    checkpoint = Path((work_dir / 'last_checkpoint').read_text())
    merged = work_dir / 'merged.pth'
    tool('reparam.py', config, checkpoint, merged, '--cfg-options', *options,
         cwd=work_dir)
    return Run(config, options, work_dir, checkpoint, log, merged)


def data_options(name: str, shapes: Path) -> list:
    options = [f'{split}_dataloader.dataset.data_root={shapes}/'
               for split in ('train', 'val', 'test')]
    if name != 'upernet':
        options += [f'{split}_evaluator.ann_file={shapes}/val.json'
                    for split in ('val', 'test')]
    return options


def build(cfg: Config):
    """Build a config's model and its optimizer wrapper, as a runner does."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
        wrapper_cfg = copy.deepcopy(cfg.optim_wrapper)
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=wrapper_cfg.pop('constructor'),
                 paramwise_cfg=wrapper_cfg.pop('paramwise_cfg'),
                 optim_wrapper_cfg=wrapper_cfg))
        return model, constructor(model)


def without_pretrained(config: Path) -> Config:
    cfg = Config.fromfile(config)
    pretrained = cfg.model.backbone.pop('init_cfg')
    assert pretrained == dict(
        type='Pretrained',
        checkpoint='vanillanet://vanillanet_13_act_num_4_kd_pretrain',
        prefix='backbone.')
    return cfg


def one_step(cfg: Config, batch: dict):
    """Build a model, do one training step, and predict.

    Every trainable parameter of the backbone must have moved.
    """
    torch.manual_seed(0)
    model, optim_wrapper = build(cfg)
    model.init_weights()
    model.train()
    before = copy.deepcopy(dict(model.backbone.named_parameters()))
    losses = model.train_step(copy.deepcopy(batch), optim_wrapper)
    assert torch.isfinite(losses['loss'])
    unmoved = [k for k, v in model.backbone.named_parameters()
               if torch.equal(v, before[k])]
    assert not unmoved
    model.eval()
    return model.test_step(copy.deepcopy(batch))
