# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from golden import load, model_cfg, random_authors_weights, relative_l2
from mmengine.config import Config
from mmpretrain.apis import (
    ImageClassificationInferencer,
    ModelHub,
    get_model,
    inference_model,
    list_models,
)
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.checkpoints import PUBLISHED, URL
from mmvanilla.models import VanillaNet
from mmvanilla.utils.registration import register_models, root

PAPER = {
    '5': 72.49,
    '6': 76.36,
    '7': 77.98,
    '8': 79.13,
    '9': 79.87,
    '10': 80.57,
    '11': 81.08,
    '12': 81.55,
    '13': 82.05,
    '13-x1.5': 82.53,
    '13-x1.5-ada': 83.11
}
NAMES = {f'vanillanet-{name}_8xb128_in1k' for name in VanillaNet.arch_settings}


@pytest.fixture
def authors_file(tmp_path) -> str:
    """Address of a file of the authors', of the golden 'plain' network."""
    torch.save(dict(model=load('plain')['state_dict']), tmp_path / 'a.pth')
    return f'vanillanet://{tmp_path / "a.pth"}'


def plain() -> dict:
    """What turns a variant of the zoo into the golden 'plain' network."""
    cfg = model_cfg(load('plain'))
    return dict(
        backbone=dict(arch=dict(cfg['backbone']['arch'], _delete_=True)),
        head=dict(num_classes=10, in_channels=cfg['head']['in_channels']))


def test_models_are_listed():
    assert set(list_models('vanillanet*')) == NAMES
    # Beside mmpretrain's own.
    assert 'resnet50_8xb32_in1k' in list_models('resnet50')
    assert NAMES <= set(list_models(task='Image Classification'))
    register_models()  # once more does nothing
    assert set(list_models('vanillanet*')) == NAMES


@pytest.mark.parametrize('name', sorted(NAMES))
def test_metafile(name):
    info = ModelHub.get(name)
    arch = info.config.model.backbone.arch
    assert name == f'vanillanet-{arch}_8xb128_in1k'
    (result, ) = info.results
    assert result.metrics == {'Top 1 Accuracy (paper)': PAPER[arch]}
    assert result.task == 'Image Classification'
    scheme, _, published = info.weights.partition('://')
    assert scheme == 'vanillanet' and PUBLISHED[published]['arch'] == arch
    found = info.metadata.data
    for deploy, form in ((True, ''), (False, ' (train form)')):
        cfg = Config(dict(model=info.config.model.to_dict()))
        cfg.model.pop('data_preprocessor', None)
        cfg.model.backbone.deploy = cfg.model.head.deploy = deploy
        with torch.device('meta'):
            model = mmpretrain.registry.MODELS.build(cfg.model).eval()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 224, 224))
        assert found['Parameters' + form] == sum(
            p.numel() for p in model.parameters())
        assert found['FLOPs' + form] == counter.get_total_flops() // 2


def test_readme_has_the_same_table():
    readme = (root() / 'configs/vanillanet/README.md').read_text()
    for name in NAMES:
        info = ModelHub.get(name)
        numbers = info.metadata.data
        cells = [
            f'`{name}`\\*', f'{numbers["Parameters"] / 1e6:.2f}',
            f'{numbers["Parameters (train form)"] / 1e6:.2f}',
            f'{numbers["FLOPs"] / 1e9:.2f}',
            f'{numbers["FLOPs (train form)"] / 1e9:.2f}',
            f'{PAPER[info.config.model.backbone.arch]:.2f}',
            f'[config]({Path(info.config.filename).name})'
        ]
        assert f'| {" | ".join(cells)} |' in readme
        published = info.weights.partition('://')[2]
        assert f'[model]({URL}{published}.pth)' in readme


def test_get_model_by_name():
    model = get_model('vanillanet-6_8xb128_in1k')
    assert model.backbone.stages[3].conv.conv2.weight.shape[0] == 4096
    assert model._dataset_meta['classes'][0] == 'tench, Tinca tinca'
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_get_model_with_a_file_of_the_authors(authors_file):
    golden = load('plain')
    model = get_model(
        'vanillanet-6_8xb128_in1k', pretrained=authors_file, **plain())
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, golden['eval'][1.0]['logits']) < 1e-5


def test_get_model_downloads(tmp_path, monkeypatch):
    """``pretrained=True`` is the published file."""
    served = tmp_path / 'served'
    served.mkdir()
    torch.save(
        dict(model=load('plain')['state_dict']), served / 'vanillanet_6.pth')
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL', served.as_uri() + '/')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    golden = load('plain')
    model = get_model('vanillanet-6_8xb128_in1k', pretrained=True, **plain())
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, golden['eval'][1.0]['logits']) < 1e-5


def test_inference_by_name(tmp_path):
    dims = VanillaNet.arch_settings['5']['dims']
    weights = random_authors_weights(dims, deploy=False)
    weights['cls2.0.weight'] = torch.zeros(1000, 1000, 1, 1)
    weights['cls2.0.bias'] = torch.zeros(1000)
    weights['cls2.0.bias'][207] = 9
    torch.save(dict(model=weights), tmp_path / 'a.pth')
    pretrained = f'vanillanet://{tmp_path / "a.pth"}'
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)

    name = 'vanillanet-5_8xb128_in1k'
    inferencer = ImageClassificationInferencer(name, pretrained=pretrained)
    for found in (inferencer(image)[0],
                  inference_model(name, image, pretrained=pretrained)):
        assert found['pred_scores'].shape == (1000, )
        assert found['pred_label'] == 207
        assert found['pred_class'] == 'golden retriever'
