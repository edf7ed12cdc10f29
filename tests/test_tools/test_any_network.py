# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The same way for networks that are not VanillaNet: train, merge, ship."""
import copy

import pytest
import torch
from golden import relative_l2
from mmengine.config import Config
from tiny import assert_same_weights, read, tiny_cfg, train

from mmvanilla.checkpoints import load_weights
from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam.merge import reparameterize
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError

# Of many norms: follow at once, and divide by nothing that is nearly zero.
NORM = dict(type='BN', momentum=0.9, eps=1e-2)
RESNET = dict(
    type='ResNet', depth=18, in_channels=1, stem_channels=4, base_channels=4,
    norm_cfg=NORM)


def network_cfg(work_dir, **kwargs) -> Config:
    cfg = tiny_cfg(work_dir, epochs=2, decay_epochs=1)
    cfg.model.backbone = dict(
        type='WithDeepTraining',
        model=RESNET,
        convs=['conv1', 'layer*.conv?'],
        conv_cfg=dict(type='DeepTrainingConv2d', norm_cfg=NORM),
        act_cfg=dict(type='SeriesActivation', act_num=1, norm_cfg=NORM),
        input_shape=[1, 32, 32]) | kwargs
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(
        type='LinearClsHead', num_classes=10, in_channels=32)
    return cfg


def test_from_training_to_what_ships(tmp_path):
    """Over the files of an earlier run, of weights averaged by EMAHook."""
    (tmp_path / 'work').mkdir()
    torch.save(dict(meta=dict(mmvanilla_version='0')),
               tmp_path / 'work' / 'deploy.pth')
    (tmp_path / 'work' / 'deploy.py').write_text('x = 1\n')
    cfg = network_cfg(tmp_path / 'work')
    cfg.custom_hooks += [
        dict(type='EMAHook', momentum=0.9, update_buffers=True),
        dict(type='ReparameterizeHook', checkpoint='last', tol=1e-2),
    ]
    config = tmp_path / 'config.py'
    cfg.dump(config)
    train(Config.fromfile(config))
    checkpoint = tmp_path / 'work' / 'epoch_2.pth'
    source = build_model(cfg)
    load_weights(source, str(checkpoint))
    # In float64 nothing but the merge itself can make a difference.
    exact = copy.deepcopy(source).double()
    x = torch.rand(2, 1, 32, 32).double()
    with torch.no_grad():
        expected = exact(x)
        assert switch_to_deploy(exact) == 17 + 1
        assert relative_l2(exact(x), expected) <= 1e-10
    switch_to_deploy(source)

    # What the hook wrote builds by itself and has the same outputs, and the
    # tool writes the same.
    report = reparameterize(
        Config.fromfile(config), checkpoint, tmp_path / 'out.pth', 1e-2, 8)
    assert report.layers == 17 + 1
    for path in (tmp_path / 'work' / 'deploy.pth', tmp_path / 'out.pth'):
        deploy_cfg = Config.fromfile(path.with_suffix('.py'))
        assert deploy_cfg.custom_hooks == []  # those of training
        shipped, content = build_model(deploy_cfg), read(path)
        weights = content['state_dict']
        classes = content['meta']['dataset_meta']['classes']
        assert classes == tuple('0123456789')
        shipped.load_state_dict(weights, strict=True)
        assert not any('.conv2.conv1.' in k or k.endswith('.lam')
                       for k in weights)
        assert_same_weights(weights, source.state_dict())


def test_published_weights_are_not_wanted_again(tmp_path):
    """They are where training starts: what ships has none to look for."""
    init_cfg = dict(type='Pretrained', checkpoint='gone.pth')
    cfg = network_cfg(tmp_path, model=dict(RESNET, init_cfg=init_cfg))
    cfg.dump(tmp_path / 'config.py')
    torch.save(build_model(cfg).state_dict(), tmp_path / 'model.pth')
    reparameterize(
        Config.fromfile(tmp_path / 'config.py'), tmp_path / 'model.pth',
        tmp_path / 'out.pth', samples=2)
    assert 'gone.pth' not in (tmp_path / 'out.py').read_text()
    assert 'deploy=True' in (tmp_path / 'out.py').read_text()


def test_a_pattern_that_chooses_nothing(tmp_path):
    cfg = network_cfg(tmp_path, convs='blocks.*')
    with pytest.raises(UserError, match=r"convs='blocks\.\*' chooses nothing"):
        build_model(cfg)
