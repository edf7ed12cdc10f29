# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The same road for networks that are not VanillaNet: train, merge, ship."""
import copy

import pytest
import torch
from golden import relative_l2
from mmengine.config import Config
from tiny import (
    assert_same_weights,
    read,
    refused,
    run_tool,
    tiny_cfg,
    train,
)

from mmvanilla.checkpoints import load_weights
from mmvanilla.export import export
from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam.merge import reparameterize
from mmvanilla.utils.building import build_model

RESNET = dict(
    type='ResNet', depth=18, in_channels=1, stem_channels=4, base_channels=4)
# Of 139 norms: follow at once, and divide by nothing that is nearly zero.
FAST = dict(type='BN', momentum=0.9, eps=1e-2)
SERIES = dict(type='SeriesActivation', act_num=1)
# Changed after it was built; of its own arguments, convolutions or both.
BACKBONES = {
    'WithDeepTraining': dict(
        type='WithDeepTraining',
        model=RESNET,
        convs=['conv1', 'layer*.conv?'],
        act_cfg=SERIES,
        input_shape=[1, 32, 32]),
    'conv_cfg': dict(RESNET, conv_cfg=dict(type='DeepTrainingConv2d')),
    'conv_cfg and act_cfg': dict(
        type='MobileNetV2',
        widen_factor=0.1,
        norm_cfg=FAST,
        conv_cfg=dict(type='DeepTrainingConv2d', norm_cfg=FAST),
        act_cfg=dict(SERIES, norm_cfg=FAST)),
}
LAYERS = {
    'WithDeepTraining': 17 + 17,
    'conv_cfg': 20,
    'conv_cfg and act_cfg': 52 + 35
}


def network_cfg(work_dir, name: str) -> Config:
    cfg = tiny_cfg(work_dir)
    is_mobile = name == 'conv_cfg and act_cfg'
    cfg.model.backbone = BACKBONES[name]
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1280 if is_mobile else 32)
    if is_mobile:  # which takes three channels: each gets the one
        cfg.model.data_preprocessor.update(mean=[77.9] * 3, std=[95.9] * 3)
    return cfg


@pytest.mark.parametrize('name', BACKBONES)
def test_from_training_to_what_ships(name, tmp_path):
    cfg = network_cfg(tmp_path / 'work', name)
    cfg.custom_hooks += [
        dict(type='EMAHook', momentum=0.9, update_buffers=True),
        dict(type='ReparameterizeHook', checkpoint='last', tol=1e-3),
    ]
    config = tmp_path / 'config.py'
    cfg.dump(config)
    train(Config.fromfile(config))
    checkpoint = tmp_path / 'work' / 'epoch_4.pth'
    source = build_model(cfg)
    load_weights(source, str(checkpoint))
    # In float64 nothing but the merge itself can make a difference.
    exact = copy.deepcopy(source).double()
    x = torch.rand(2, 3 if 'act' in name else 1, 32, 32).double()
    with torch.no_grad():
        expected = exact(x)
        assert switch_to_deploy(exact) == LAYERS[name]
        assert relative_l2(exact(x), expected) <= 1e-12
    assert switch_to_deploy(source) == LAYERS[name]

    # What the hook wrote builds by itself and has the same outputs, and the
    # tool writes the same.
    report = reparameterize(
        Config.fromfile(config), checkpoint, tmp_path / 'out.pth', 1e-3, 8)
    assert report.layers == LAYERS[name]
    for config_path, path in ((tmp_path / 'work' / 'deploy.py',
                               tmp_path / 'work' / 'deploy.pth'),
                              (tmp_path / 'out.py', tmp_path / 'out.pth')):
        shipped = build_model(Config.fromfile(config_path))
        weights = read(path)['state_dict']
        shipped.load_state_dict(weights, strict=True)
        assert not any('.conv1.conv1.' in k or k.endswith('.lam')
                       for k in weights)
        with torch.no_grad():  # its weights are rounded to float32
            assert relative_l2(shipped.double()(x), expected) <= 1e-5
        assert_same_weights(weights, source.state_dict())

    done = export(
        Config.fromfile(config),
        checkpoint,
        tmp_path / 'net.pt2',
        'pt2',
        samples=8,
        tol=1e-3)
    assert done.verification.outputs.max_rel <= 1e-3


@pytest.mark.slow
def test_tools_in_a_shell(tmp_path):
    """Two processes, DDP before the first batch, then test --deploy."""
    cfg = network_cfg(tmp_path / 'work', 'conv_cfg and act_cfg')
    cfg.custom_imports.imports.append('ranks')
    cfg.custom_hooks += [
        dict(type='EMAHook', update_buffers=True),
        dict(type='SaveEachRank', folder=str(tmp_path))
    ]
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    cfg.dump(tmp_path / 'config.py')
    done = run_tool(
        'dist_train.sh', 'config.py', 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (
        torch.load(tmp_path / f'rank{i}.pth', weights_only=True)
        for i in range(2))
    assert {lam for step in first['lams'] for lam in step} == {
        e / 3 for e in range(4)}
    weights = [
        {k: v for k, v in rank['state_dict'].items() if 'running' not in k}
        for rank in (first, second)
    ]
    assert_same_weights(*weights)

    done = run_tool(
        'test.py', 'config.py', 'work/epoch_4.pth', '--deploy', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Merged 87 layers before testing' in done.stdout + done.stderr


def test_published_weights_are_not_wanted_again(tmp_path):
    """They are where training starts: what ships has none to look for."""
    cfg = network_cfg(tmp_path, 'WithDeepTraining')
    cfg.model.backbone.model = dict(
        RESNET, init_cfg=dict(type='Pretrained', checkpoint='gone.pth'))
    cfg.dump(tmp_path / 'config.py')
    torch.save(build_model(cfg).state_dict(), tmp_path / 'model.pth')
    reparameterize(
        Config.fromfile(tmp_path / 'config.py'), tmp_path / 'model.pth',
        tmp_path / 'out.pth', samples=2)
    assert 'gone.pth' not in (tmp_path / 'out.py').read_text()
    assert 'deploy=True' in (tmp_path / 'out.py').read_text()


def test_refusals(tmp_path, monkeypatch, capfd):
    cfg = network_cfg(tmp_path / 'work', 'WithDeepTraining')
    cfg.model.backbone.convs = 'blocks.*'
    cfg.dump(tmp_path / 'config.py')
    error = refused(monkeypatch, capfd, 'train.py', 'config.py', cwd=tmp_path)
    assert "convs='blocks.*' chooses nothing in this ResNet" in error
