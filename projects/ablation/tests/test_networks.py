# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json

import pytest
import torch
from golden import relative_l2
from grid import Ablation, Row, run_config
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import ResNet
from mmpretrain.registry import MODELS
from networks import (
    NarrowAlexNet,
    PlainNet,
    ShortcutVanillaNet,
    ThreeReLUResNet,
)
from report import make_table
from tiny import ROOT
from torch import nn

from mmvanilla.models import VanillaNet

ABLATION = ROOT / 'projects' / 'ablation'
ARCH = dict(dims=[8, 8, 16, 16], strides=[1, 2, 1])
GRIDS = sorted((ABLATION / 'configs').glob('*.py'))


@pytest.mark.parametrize('place', ['before', 'after'])
def test_shortcut(place):
    torch.manual_seed(0)
    net = ShortcutVanillaNet(place, arch=ARCH).eval()
    plain = VanillaNet(ARCH)
    plain.load_state_dict(net.state_dict(), strict=True)
    plain.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = plain.stem(x)
        for stage, stride in zip(plain.stages, ARCH['strides']):
            y, shortcut = stage.conv(out), out
            if stride == 2:
                y, shortcut = (nn.functional.max_pool2d(m, 2)
                               for m in (y, shortcut))
            width = shortcut.shape[1]
            if place == 'before':
                y[:, :width] += shortcut
            y = stage.act(y)
            if place == 'after':
                y[:, :width] += shortcut
            out = y
        torch.testing.assert_close(net(x)[0], out)
        assert relative_l2(plain(x)[0], out) > 1e-2


def test_plain_networks():
    """VanillaNet's convolutions in deploy form, and AlexNet's."""
    plain, vanilla = PlainNet(**ARCH), VanillaNet(ARCH, deploy=True)
    shapes, alexnet = (
        [m.weight.shape for m in net.modules() if isinstance(m, nn.Conv2d)]
        for net in (plain, NarrowAlexNet(96)))
    assert shapes == [
        m.conv.weight.shape for m in (vanilla.stem, *vanilla.stages)]
    assert [(shape[0], shape[2]) for shape in alexnet] == [
        (96, 11), (256, 5), (384, 3), (384, 3), (256, 3), (4096, 1), (4096, 1)]
    x = torch.randn(1, 3, 64, 64)
    assert plain(x)[0].shape == vanilla(x)[0].shape


def test_three_relus_compute_what_one_does():
    kwargs = dict(depth=50, base_channels=8, stem_channels=8)
    net, plain = ThreeReLUResNet(**kwargs), ResNet(**kwargs)
    net.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x)[-1], plain(x)[-1])


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_grids(path):
    cfg = Config.fromfile(path)
    x = torch.randn(2, 1, 64, 64)
    for row in cfg.grid['rows']:
        run = run_config(cfg, row['change'], 18, 0)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run.model)
        assert model(x).shape == (2, 10)
        # Lambda reaches 1 in every run that has one.
        for hook in run.custom_hooks:
            if hook.type == 'DeepTrainingHook':
                assert 1 <= hook.decay_epochs <= 17
        if path.stem == 'depth':
            published = VanillaNet.arch_settings[row['name']]
            arch = run.model.backbone.arch
            assert [16 * d for d in arch.dims] == published['dims']
            assert arch.strides == published['strides']


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_the_page_shows_the_results(path):
    content = json.loads(
        (ABLATION / 'results' / f'{path.stem}.json').read_text())
    rows = [Row(**{k: v for k, v in row.items() if k not in ('mean', 'std')})
            for row in content.pop('rows')]
    ablation = Ablation(rows=rows, **content)
    assert make_table(ablation) in (ABLATION / 'README.md').read_text()
    assert all(len(row.accuracies) == ablation.seeds >= 3 for row in rows)
    settings = Config.fromfile(path).grid['rows']
    assert [(row.name, row.paper) for row in rows] == [
        (row['name'], row.get('paper')) for row in settings]
