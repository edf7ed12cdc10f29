# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from golden import relative_l2
from grid import run_config
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from networks import NarrowAlexNet, PlainNet, ShortcutVanillaNet
from tiny import ROOT

from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet

ABLATION = ROOT / 'projects' / 'ablation'
ARCH = dict(dims=[8, 8, 16, 16], strides=[1, 2, 1])
GRIDS = sorted((ABLATION / 'configs').glob('*.py'))
# Top-1 accuracy on ImageNet in the tables of arXiv 2305.12972, in percent.
PAPER = {
    'series': [60.53, 74.53, 75.62, 76.36, 76.43],
    'techniques': [
        59.58, 60.53, 75.23, 76.36, 57.52, 59.09, 61.12, 63.59, 76.13, 76.16,
        76.30, 76.27
    ],
    'shortcut': [76.36, 75.92, 75.72],
    'schedule': [None] * 8,
    'finetune': [None] * 3,
    'depth': [72.49, 76.36, 77.98, 79.13, 79.87, 80.57, 81.08, 81.55, 82.05],
}


@pytest.mark.parametrize('place', ['before', 'after'])
def test_shortcut(place):
    torch.manual_seed(0)
    net = ShortcutVanillaNet(place, arch=ARCH)
    plain = VanillaNet(ARCH)
    plain.load_state_dict(net.state_dict(), strict=True)
    net.eval(), plain.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = plain.stem(x)
        for stage, stride in zip(plain.stages, ARCH['strides']):
            y, shortcut = stage.conv(out), out
            if stride == 2:
                y, shortcut = (
                    torch.nn.functional.max_pool2d(m, 2)
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
        switch_to_deploy(net)
        assert relative_l2(net(x)[0], out) <= 1e-5


@pytest.mark.parametrize('kwargs, message', [
    (dict(shortcut='beside'), "'before' or 'after', but got 'beside'"),
    (dict(shortcut='after', arch=dict(dims=[8, 16, 8], strides=[2, 1])),
     'stage 1 has fewer channels'),
])
def test_shortcut_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShortcutVanillaNet(**kwargs)


def test_plain_net_has_vanillanets_layers():
    """Its convolutions have the shapes of those of the deploy form."""
    plain = PlainNet(**ARCH)
    vanilla = VanillaNet(ARCH, deploy=True)
    shapes = [m.weight.shape for m in plain.modules()
              if isinstance(m, torch.nn.Conv2d)]
    assert shapes == [
        m.conv.weight.shape for m in (vanilla.stem, *vanilla.stages)]
    x = torch.randn(1, 3, 64, 64)
    assert plain(x)[0].shape == vanilla(x)[0].shape


def test_narrow_alexnet_of_full_width_is_alexnet():
    net = NarrowAlexNet(96)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convs] == [
        96, 256, 384, 384, 256, 4096, 4096]
    assert [m.kernel_size[0] for m in convs] == [11, 5, 3, 3, 3, 1, 1]
    assert net(torch.randn(1, 3, 64, 64))[0].shape == (1, 4096, 1, 1)


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_grids(path):
    cfg = Config.fromfile(path)
    assert [row.get('paper') for row in cfg.grid['rows']] == PAPER[path.stem]
    x = torch.randn(2, 1, 64, 64)
    for row in cfg.grid['rows']:
        run = run_config(cfg, row['change'], 18, 0)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run.model)
        assert model(x).shape == (2, 10)
        assert run.train_cfg.max_epochs == run.param_scheduler.T_max == 18
        # Lambda reaches 1 in every run that has one.
        for hook in run.custom_hooks:
            if hook.type == 'DeepTrainingHook':
                assert 1 <= hook.decay_epochs <= 17
        if path.stem == 'depth':
            published = VanillaNet.arch_settings[row['name']]
            arch = run.model.backbone.arch
            assert [16 * d for d in arch.dims] == published['dims']
            assert arch.strides == published['strides']
