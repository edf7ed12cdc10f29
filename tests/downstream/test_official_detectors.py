# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The authors' detectors: checkpoints of mmdetection 2.x."""
import pytest
import torch
from golden import WIDTHS, random_authors_weights, same
from mmdet.apis import DetInferencer
from mmengine.runner import load_checkpoint
from tiny import ROOT

from mmvanilla.checkpoints import (
    convert,
    from_authors,
    load_weights,
    read_checkpoint,
)
from mmvanilla.reparam import switch_to_deploy
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.errors import UserError

CONFIGS = {
    name: ROOT / f'configs/detection/{name.replace("_", "-")}_vanillanet-13_'
    'fpn_8xb4-ms-1x_coco.py'
    for name in ('retinanet', 'mask_rcnn')
}
CLASSES = tuple(f'class {i}' for i in range(80))
NARROW = [4, 4, 8] + [16] * 7 + [32, 32]


def config(name: str, dims: list | None = None):
    """The detector's config, narrowed."""
    cfg = read_config(str(CONFIGS[name]))
    if dims:
        strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
        cfg.model.backbone.arch = dict(dims=dims, strides=strides)
        cfg.model.neck.in_channels = [
            width // 128 for width in cfg.model.neck.in_channels
        ]
    return cfg


def official_weights(name: str, dims: list, narrow: bool) -> dict:
    """A detector's state dict under the official keys."""
    torch.manual_seed(0)
    with torch.device('cpu' if narrow else 'meta'):
        heads = build_model(config(name, NARROW if narrow else None))
    weights = {
        f'backbone.{key}': value
        for key, value in random_authors_weights(dims, act_num=4).items()
        if not key.startswith('cls')
    }
    weights.update({
        key: value if narrow else torch.zeros(1).expand(value.shape)
        for key, value in heads.state_dict().items()
        if not key.startswith('backbone.')
    })
    if narrow:
        for key, value in weights.items():
            if key.startswith('backbone.') and value.is_floating_point():
                weights[key] = torch.rand(value.shape) * 0.2 - (
                    0 if 'var' in key else 0.1)
    return weights


def save(path, weights: dict) -> None:
    torch.save(
        dict(
            meta=dict(CLASSES=CLASSES, mmdet_version='2.25.0', epoch=12,
                      config='raise SystemExit'),
            state_dict=weights,
            optimizer=dict(state={}, param_groups=[])), path)


@pytest.mark.parametrize('name', CONFIGS)
def test_full_width(tmp_path, monkeypatch, name):
    """Every tensor of the published detector has its place."""
    weights = official_weights(name, [128 * d for d in WIDTHS['13']], False)
    save(tmp_path / f'{name}_vanillanet_13.pth', weights)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL',
                        tmp_path.as_uri() + '/')
    with torch.device('meta'):
        model = build_model(config(name))
    meta = load_weights(model, f'vanillanet://{name}_vanillanet_13')
    assert meta['dataset_meta'] == dict(classes=CLASSES)
    convert(tmp_path / f'{name}_vanillanet_13.pth', tmp_path / 'ours.pth')
    found = read_config(str(tmp_path / 'ours.py')).model
    assert found.backbone.arch == '13' and found.backbone.act_num == 4
    wanted = read_config(str(CONFIGS[name])).model
    assert found.neck == wanted.neck
    assert found.get('bbox_head') == wanted.get('bbox_head')
    assert found.get('roi_head') == wanted.get('roi_head')


@pytest.mark.parametrize('name', CONFIGS)
def test_predictions_and_round_trip(tmp_path, name):
    weights = official_weights(name, NARROW, True)
    path = tmp_path / 'official.pth'
    save(path, weights)

    # By hand: the backbone as that of a classifier, the rest as it is.
    model = build_model(config(name, NARROW))
    backbone = {k.removeprefix('backbone.'): v for k, v in weights.items()
                if k.startswith('backbone.')}
    head = {k: v for k, v in random_authors_weights(NARROW).items()
            if k.startswith('cls')}
    ours = from_authors({**backbone, **head})
    model.backbone.load_state_dict({
        k.removeprefix('backbone.'): v for k, v in ours.items()
        if k.startswith('backbone.')})
    missing, unexpected = model.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith('backbone.')},
        strict=False)
    assert not unexpected
    assert all(key.startswith('backbone.') for key in missing)

    assert '13' not in convert(path, tmp_path / 'ours.pth').splitlines()[1]
    image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy()
    cfg = read_config(str(tmp_path / 'ours.py'))
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.type == 'Resize'
    resize.scale = (96, 64)
    # Random heads are sure of nothing.
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0
    inferencers = [
        DetInferencer(cfg.copy(), checkpoint, device='cpu') for checkpoint in (
            str(tmp_path / 'ours.pth'), f'vanillanet://{path}')
    ]
    results = []
    for inferencer in inferencers:
        assert inferencer.model.dataset_meta['classes'] == CLASSES
        results.append(inferencer(image)['predictions'][0])
    inferencer.model.load_state_dict(model.state_dict(), strict=True)
    wanted = inferencer(image)['predictions'][0]
    assert len(wanted['scores']) > 0
    assert results == [wanted, wanted]

    # There and back; and merged.
    convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', to='authors')
    back = read_checkpoint(tmp_path / 'back.pth')
    assert same(back['state_dict'], weights)
    assert tuple(back['meta']['CLASSES']) == CLASSES
    model = model.double().eval()
    batch = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model.backbone(batch)
        assert switch_to_deploy(model) > 0
        torch.testing.assert_close(model.backbone(batch), before)


def test_wrong_detector_is_one_sentence(tmp_path):
    save(tmp_path / 'a.pth', official_weights('retinanet', NARROW, True))
    model = build_model(config('mask_rcnn', NARROW))
    name = f'vanillanet://{tmp_path / "a.pth"}'
    with pytest.raises(UserError, match='bbox_head.* is not in the model'
                       '|does not fit the config: ') as e:
        load_weights(model, name)
    assert '\n' not in str(e.value)
    broken = official_weights('retinanet', NARROW, True)
    del broken['backbone.stages.3.conv1.0.bias']
    save(tmp_path / 'b.pth', broken)
    with pytest.raises(UserError, match='stages.3.conv.conv1.bias'):
        load_weights(model, f'vanillanet://{tmp_path / "b.pth"}')
    other = {key: value for key, value in official_weights(
        'retinanet', NARROW, True).items() if 'retina_cls' not in key}
    save(tmp_path / 'c.pth', other)
    with pytest.raises(UserError, match='neither a RetinaNet nor a Mask'):
        convert(tmp_path / 'c.pth', tmp_path / 'd.pth')


def test_a_classifier_loads_by_prefix(tmp_path):
    """As the authors' configs start from the n = 4 checkpoint."""
    weights = official_weights('retinanet', NARROW, True)
    save(tmp_path / 'a.pth', weights)
    model = build_model(config('retinanet', NARROW))
    load_checkpoint(model, f'vanillanet://{tmp_path / "a.pth"}', strict=True)
    first = weights['backbone.stem1.0.weight']
    assert torch.equal(model.backbone.stem.conv.conv1.weight, first)
