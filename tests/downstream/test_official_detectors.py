# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The authors' detectors: checkpoints of mmdetection 2.x."""
import pytest
import torch
from downstream.runs import tool
from downstream.shapes import generate
from golden import WIDTHS, random_authors_weights, same
from mmdet.apis import DetInferencer
from tiny import ROOT

from mmvanilla.checkpoints import (
    convert,
    from_authors,
    load_weights,
    read_checkpoint,
)
from mmvanilla.reparam import switch_to_deploy
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError

CONFIGS = {
    name: ROOT / f'configs/detection/{name.replace("_", "-")}_vanillanet-13_'
    'fpn_8xb4-ms-1x_coco.py'
    for name in ('retinanet', 'mask_rcnn')
}
CLASSES = tuple(f'class {i}' for i in range(80))
NARROW = [4, 4, 8] + [16] * 7 + [32, 32]
FULL = [128 * width for width in WIDTHS['13']]


def config(name: str, dims: list = NARROW):
    """The detector's config, of these widths."""
    cfg = read_config(str(CONFIGS[name]))
    if dims != FULL:
        strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
        cfg.model.backbone.arch = dict(dims=dims, strides=strides)
        cfg.model.neck.in_channels = [
            width // 128 for width in cfg.model.neck.in_channels]
    return cfg


def official_weights(name: str, dims: list = NARROW) -> dict:
    """A detector's state dict under the official keys, of random weights."""
    torch.manual_seed(0)
    rest = build_model(config(name, dims))
    weights = {}
    for key, value in random_authors_weights(dims, act_num=4).items():
        if key.startswith('cls'):
            continue
        if value.is_floating_point():
            # Of a scale that neither fades nor grows from layer to layer.
            fan_in = value[0].numel() if value.dim() == 4 else 16
            value = torch.randn(value.shape) / fan_in**0.5
        if key.endswith('running_var'):
            value = 0.5 + value.abs()
        elif value.dim() == 1 and key.endswith('weight'):
            value = 1 + 0.2 * value
        weights[f'backbone.{key}'] = value
    for key, value in rest.state_dict().items():
        if not key.startswith('backbone.'):
            # Scores that differ: no two boxes change places by rounding.
            scale = 10 if key.endswith('_cls.weight') else 1
            weights[key] = value * scale
    return weights


def save(path, weights: dict) -> None:
    torch.save(
        dict(meta=dict(CLASSES=CLASSES, mmdet_version='2.25.0', epoch=12,
                       config='raise SystemExit'),
             state_dict=weights, optimizer=dict(state={}, param_groups=[])),
        path)


def filled_by_hand(name: str, dims: list, weights: dict):
    """The backbone as that of a classifier, the rest as it is."""
    model = build_model(config(name, dims))
    backbone = {k.removeprefix('backbone.'): v for k, v in weights.items()
                if k.startswith('backbone.')}
    head = {k: v for k, v in random_authors_weights(dims).items()
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
    return model


@pytest.mark.parametrize('dims', [NARROW, FULL], ids=['narrow', 'full'])
@pytest.mark.parametrize('name', CONFIGS)
def test_predictions_and_round_trip(tmp_path, monkeypatch, name, dims):
    weights = official_weights(name, dims)
    path = tmp_path / f'{name}_vanillanet_13.pth'
    save(path, weights)
    model = filled_by_hand(name, dims, weights)
    official = f'vanillanet://{path}'
    if dims == FULL:  # by the name of the release
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        monkeypatch.setattr('mmvanilla.checkpoints.hub.URL',
                            tmp_path.as_uri() + '/')
        official = f'vanillanet://{name}_vanillanet_13'

    convert(path, tmp_path / 'ours.pth')
    cfg = read_config(str(tmp_path / 'ours.py'))
    wanted = read_config(str(CONFIGS[name])).model
    assert cfg.model.backbone.act_num == 4
    assert cfg.model.get('bbox_head') == wanted.get('bbox_head')
    assert cfg.model.get('roi_head') == wanted.get('roi_head')
    if dims == FULL:
        assert cfg.model.backbone.arch == '13'
        assert cfg.model.neck == wanted.neck

    image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy()
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.type == 'Resize'
    resize.scale = (96, 64)
    # Random heads are sure of nothing.
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0
    results = []
    for checkpoint in (str(tmp_path / 'ours.pth'), official):
        inferencer = DetInferencer(cfg.copy(), checkpoint, device='cpu')
        assert inferencer.model.dataset_meta['classes'] == CLASSES
        results.append(inferencer(image)['predictions'][0])
    inferencer.model.load_state_dict(model.state_dict(), strict=True)
    wanted = inferencer(image)['predictions'][0]
    assert len(wanted['scores']) > 0
    assert results == [wanted, wanted]

    # There and back.
    convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', to='authors')
    back = read_checkpoint(tmp_path / 'back.pth')
    assert same(back['state_dict'], weights)
    assert tuple(back['meta']['CLASSES']) == CLASSES


@pytest.mark.parametrize('name', CONFIGS)
def test_tools(tmp_path, name):
    """tools/reparam.py and tools/test.py --deploy take the official file."""
    path = tmp_path / 'official.pth'
    save(path, official_weights(name))
    cfg = config(name)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0
    shapes = generate(tmp_path / 'shapes', 2, 2)
    cfg.merge_from_dict({'test_dataloader.dataset.data_root': f'{shapes}/',
                         'test_dataloader.dataset.ann_file': 'val.json',
                         'test_dataloader.dataset.data_prefix.img': 'val/',
                         'test_dataloader.num_workers': 0,
                         'test_dataloader.persistent_workers': False})
    # The shapes do not have the 80 classes.
    cfg.test_evaluator = dict(
        type='DumpDetResults', out_file_path='results.pkl')
    cfg.dump(tmp_path / 'config.py')
    official = f'vanillanet://{path}'
    report = tool('reparam.py', 'config.py', official, 'merged.pth',
                  '--samples', 2, cwd=tmp_path)
    assert 'detections' in report
    merged = filled_by_hand(name, NARROW, read_checkpoint(path)['state_dict'])
    assert switch_to_deploy(merged) > 0
    written = read_checkpoint(tmp_path / 'merged.pth')['state_dict']
    assert list(written) == list(merged.state_dict())
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(written[key], value)
    assert 'Merged 24 layers' in tool(
        'test.py', 'config.py', official, '--deploy', cwd=tmp_path)
    assert (tmp_path / 'results.pkl').stat().st_size > 1000


def test_wrong_detector_is_one_sentence(tmp_path):
    save(tmp_path / 'a.pth', official_weights('retinanet'))
    model = build_model(config('mask_rcnn'))
    name = f'vanillanet://{tmp_path / "a.pth"}'
    with pytest.raises(UserError, match='bbox_head.* is not in the model'
                       '|does not fit the config: ') as e:
        load_weights(model, name)
    assert '\n' not in str(e.value)
    broken = official_weights('retinanet')
    del broken['backbone.stages.3.conv1.0.bias']
    save(tmp_path / 'b.pth', broken)
    with pytest.raises(UserError, match='stages.3.conv.conv1.bias'):
        load_weights(model, f'vanillanet://{tmp_path / "b.pth"}')
    other = {key: value for key, value in official_weights('retinanet').items()
             if 'retina_cls' not in key}
    save(tmp_path / 'c.pth', other)
    with pytest.raises(UserError, match='neither a RetinaNet nor a Mask'):
        convert(tmp_path / 'c.pth', tmp_path / 'd.pth')
