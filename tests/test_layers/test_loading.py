# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Weights that do not fit, as tools of the toolboxes load them."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from mmpretrain import get_model
from narrow import TINY, randomize
from torch import nn

from mmvanilla.models import VanillaNet
from mmvanilla.reparam import add_deep_training

HEAD = dict(type='VanillaNetHead', num_classes=5, in_channels=12)


def classifier(**head) -> Config:
    return Config(dict(model=dict(
        type='ImageClassifier', head=dict(HEAD, **head),
        backbone=dict(type='VanillaNet', arch=TINY))))


@pytest.fixture
def weights() -> dict:
    return randomize(get_model(classifier())).state_dict()


def save(weights, tmp_path) -> str:
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def prefixed(weights, prefix) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def by_init_cfg(path, **kwargs):
    net = VanillaNet(TINY, init_cfg=dict(
        type='Pretrained', checkpoint=path, **kwargs))
    net.init_weights()


def by_init_cfg_of_the_model(path):
    cfg = classifier()
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=path)
    get_model(cfg).init_weights()


def by_mmengine(path):
    load_checkpoint(get_model(classifier()), path, map_location='cpu')


@pytest.mark.parametrize('load, change, message', [
    (by_init_cfg, lambda x: x, "a.pth.*set prefix='backbone.'"),
    (lambda path: by_init_cfg(path, prefix='backbone'),
     lambda x: x.pop('backbone.stem.act.conv.weight') is x or x,
     'stem.act.conv.weight is missing'),
    (by_init_cfg, lambda x: dict(model=x), 'vanillanet:///'),
    (by_init_cfg_of_the_model, lambda x: prefixed(x, 'model.'),
     'VanillaNet: backbone.stem.conv.conv1.weight is missing'),
    (by_mmengine, lambda x: {k: v for k, v in x.items() if 'head' not in k},
     'VanillaNetHead: head.classifier'),
    (by_mmengine, lambda x: {k: v[:, :1] if v.ndim == 4 else v
                             for k, v in x.items()}, 'VanillaNet: backbone'),
    (lambda path: get_model(classifier(in_channels=7), pretrained=path),
     lambda x: x, r'head.\S+ has the shape \[5, 12, 1, 1\] instead of \[5, 7'),
])
def test_what_does_not_fit_is_refused(weights, tmp_path, load, change,
                                      message):
    with pytest.raises(RuntimeError, match=message) as error:
        load(save(change(weights), tmp_path))
    assert '\n' not in str(error.value)


def test_a_head_for_other_classes_is_left_out(weights, tmp_path):
    logger = MMLogger.get_instance(tmp_path.name, log_file=tmp_path / 'a.log')
    path = save(weights, tmp_path)
    loaded = get_model(classifier(num_classes=3), pretrained=path)
    line, = (tmp_path / 'a.log').read_text().splitlines()
    assert 'WARNING' in line and '[5, 12, 1, 1] instead of [3, 12' in line
    assert logger is MMLogger.get_current_instance()
    for key, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, weights[f'backbone.{key}'])


def test_torch_loads_as_ever(weights):
    """Parts where it is not strict, and all errors in one where it is."""
    model = get_model(classifier())
    part = {k: v for k, v in weights.items() if 'stages.0' in k}
    found = model.load_state_dict({**part, 'x': torch.ones(1)}, strict=False)
    assert found.unexpected_keys == ['x']
    assert len(found.missing_keys) > 40
    key = next(iter(part))
    assert torch.equal(model.state_dict()[key], part[key])
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict({**part, 'x': torch.ones(1)}, strict=True)
    for key in ('"x"', '"backbone.stem.act.conv.weight"', '"head.classifier'):
        assert key in str(error.value)


def vgg() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, groups=2), nn.LeakyReLU(0.2))


@pytest.mark.parametrize('deploy', [True, False])
def test_weights_of_the_network_as_it_was(tmp_path, deploy):
    """Activations that it did not have start as those that it had."""
    plain, x = randomize(vgg()), torch.randn(2, 3, 12, 12)
    network = vgg()
    add_deep_training(network, input_shape=(3, 12, 12), deploy=deploy)
    randomize(network)  # as init_weights of a network may
    surplus = dict(plain.state_dict(), **{'fc.weight': torch.ones(2, 2)})
    load_checkpoint(network, save(surplus, tmp_path), map_location='cpu')
    torch.testing.assert_close(network.eval()(x), plain(x))
    trained = copy.deepcopy(network.state_dict())
    load_checkpoint(network, save(trained, tmp_path), map_location='cpu')
    missing = '1.conv.weight'
    del trained[missing]
    with pytest.raises(RuntimeError, match=f'{missing} is missing'):
        load_checkpoint(network, save(trained, tmp_path), map_location='cpu')
