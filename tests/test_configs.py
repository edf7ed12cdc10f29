# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The configs build; the recipe is the authors', the figures are right."""
import copy
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmpretrain.apis import ModelHub
from PIL import Image
from tiny import ROOT

from mmvanilla.checkpoints.hub import PUBLISHED, URL
from mmvanilla.models import VanillaNet
from mmvanilla.utils.configs import build_model, read_config

CONFIGS = ROOT / 'configs' / 'vanillanet'

# Learning rate, weight decay, alpha of mixup, layer decay: the table of the
# authors' recipe, and below it those that have none and take 10's.
RECIPE = {
    '5': (3.5e-3, 0.35, 0.1, 1.0),
    '6': (4.8e-3, 0.32, 0.15, 0.8),
    '7': (4.7e-3, 0.35, 0.4, 0.8),
    '8': (3.5e-3, 0.30, 0.4, 1.0),
    '9': (3.5e-3, 0.30, 0.4, 1.0),
    '10': (3.5e-3, 0.25, 0.4, 1.0),
    '11': (3.5e-3, 0.25, 0.4, 1.0),
    '12': (3.5e-3, 0.25, 0.4, 1.0),
    '13': (3.5e-3, 0.25, 0.4, 1.0),
    '13-x1.5': (3.5e-3, 0.25, 0.4, 1.0),
    '13-x1.5-ada': (3.5e-3, 0.25, 0.4, 1.0),
}
TOP1 = dict(zip(RECIPE, (72.49, 76.36, 77.98, 79.13, 79.87, 80.57, 81.08,
                         81.55, 82.05, 82.53, 83.11)))
BATCH = 2
EPOCH_LENGTH = 4


def config_file(name: str) -> Path:
    return CONFIGS / f'vanillanet-{name}_8xb128_in1k.py'


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory) -> Path:
    """A folder in ImageNet's layout: noise, of its first two classes."""
    root = tmp_path_factory.mktemp('imagenet')
    (root / 'meta').mkdir()
    rng = np.random.default_rng(0)
    # An odd one out in train: the last batch is not whole.
    for split, number in (('train', BATCH * EPOCH_LENGTH + 1), ('val', 4)):
        (root / split).mkdir()
        lines = []
        for i in range(number):
            image = rng.integers(0, 256, (320, 280 + i, 3), np.uint8)
            Image.fromarray(image).save(root / split / f'{i}.png')
            lines.append(f'{i}.png {i % 2}')
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture(scope='module')
def runner(imagenet, tmp_path_factory) -> Runner:
    """VanillaNet-6's runner, with narrow layers and small batches."""
    cfg = Config.fromfile(config_file('6'))
    arch = dict(VanillaNet.arch_settings['6'])
    arch['dims'] = [dim // 64 for dim in arch['dims']]
    cfg.model.backbone.arch = arch
    cfg.model.head.in_channels = arch['dims'][-1]
    # There is no mixed precision without a GPU.
    cfg.optim_wrapper.pop('loss_scale')
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.work_dir = str(tmp_path_factory.mktemp('run'))
    cfg.auto_scale_lr.enable = True
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        assert loader.batch_size == 128
        loader.batch_size, loader.num_workers = BATCH, 0
        loader.dataset.data_root = str(imagenet)
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def test_every_variant_has_a_config():
    names = {p.name for p in CONFIGS.glob('*_8xb128_in1k.py')}
    assert names == {config_file(name).name for name in RECIPE}
    assert set(RECIPE) == set(VanillaNet.arch_settings)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('[!_]*/*.py')),
                         ids=lambda path: path.stem)
def test_config_builds(path):
    if path.parent != CONFIGS:
        pytest.importorskip('mmcv.ops')
    cfg = read_config(str(path))
    # Any toolbox's runner that reads it knows our types.
    assert cfg.custom_imports.imports == ['mmvanilla']
    scope = '' if path.parent == CONFIGS else 'mmpretrain.'
    assert cfg.default_hooks.checkpoint.type == f'{scope}AtomicCheckpointHook'
    with torch.device('meta'):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e4


@pytest.mark.parametrize('name', RECIPE)
def test_numbers_of_a_variant(name):
    cfg = Config.fromfile(config_file(name))
    lr, decay, alpha, layer_decay = RECIPE[name]
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (
        lr, decay)
    # One of the two per batch, evenly.
    assert cfg.model.train_cfg == dict(augments=[
        dict(type='Mixup', alpha=alpha), dict(type='CutMix', alpha=1)])
    assert wrapper.paramwise_cfg.get('layer_decay_rate', 1) == layer_decay
    backbone, head = cfg.model.backbone, cfg.model.head
    assert backbone.arch == name and not backbone.get('deploy')
    assert head.in_channels == VanillaNet.arch_settings[name]['dims'][-1]
    assert (head.num_classes, head.dropout) == (1000, 0.05)
    # tests/test_recipe_trace.py follows optimizer, schedule and average.
    warmup, cosine = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, 5) == (0, cosine.begin)
    # Both follow max_epochs.
    assert not {'end', 'T_max'} & {*cosine}
    deep_training, ema = cfg.custom_hooks
    assert deep_training.type == 'DeepTrainingHook'
    assert deep_training.decay_epochs * cfg.train_cfg.max_epochs == 100
    assert cfg.train_cfg.max_epochs == 300
    assert (ema.type, ema.momentum, ema.update_buffers) == (
        'EMAHook', 4e-5, True)
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'


COMPLEXITY = runpy.run_path(str(ROOT / 'docs' / 'complexity.py'))


@pytest.mark.parametrize('name', RECIPE)
def test_metafile_counts_its_network(name):
    info = ModelHub.get(f'vanillanet-{name}_8xb128_in1k')
    train, _, deploy = COMPLEXITY['forms'](name).values()
    assert info.metadata.data == {
        'Parameters': deploy['parameters'], 'FLOPs': deploy['macs'],
        'Parameters (train form)': train['parameters'],
        'FLOPs (train form)': train['macs']}
    # The paper's, under the name that other models of the hub have.
    assert list(info.results[0].metrics) == ['Top 1 Accuracy']
    assert info.results[0].metrics['Top 1 Accuracy'] == TOP1[name]
    scheme, _, published = info.weights.partition('://')
    assert scheme == 'vanillanet' and PUBLISHED[published]['arch'] == name


@pytest.mark.parametrize('page', COMPLEXITY['PAGES'])
def test_tables_are_those_of_the_metafile(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    assert COMPLEXITY['with_table'](text) == text
    # Other figures would be written over.
    wrong = re.sub(r'(?<=\| )\d+\.\d+(?= \|)', '9.9', text)
    assert COMPLEXITY['with_table'](wrong) == text
    for name in RECIPE:
        model = f'vanillanet-{name}_8xb128_in1k'
        assert text.count(f'\n| {name} |') + text.count(
            f'\n| `{model}`\\* |') == 1
        if page.startswith('configs'):
            file = ModelHub.get(model).weights.partition('://')[2]
            assert f'[config]({model}.py) | [model]({URL}{file}.pth)' in text


def test_train_pipeline(runner):
    pipeline = runner.train_dataloader.dataset.pipeline.transforms
    load, crop, flip, randaugment, erasing, pack = pipeline
    assert type(load).__name__ == 'LoadImageFromFile'
    assert type(crop).__name__ == 'RandomResizedCrop'
    assert crop.scale == (224, 224)
    assert crop.crop_ratio_range == (0.08, 1.0)
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (crop.interpolation, crop.backend) == ('bicubic', 'pillow')
    assert type(flip).__name__ == 'RandomFlip'
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    # rand-m7-mstd0.5-inc1
    assert type(randaugment).__name__ == 'RandAugment'
    assert randaugment.num_policies == 2
    assert randaugment.magnitude_level == 7
    assert randaugment.magnitude_std == 0.5
    assert randaugment.total_level == 10
    assert [(type(t).__name__, getattr(t, 'magnitude_range', None))
            for t in randaugment] == [
                ('AutoContrast', None), ('Equalize', None), ('Invert', None),
                ('Rotate', (0, 30)), ('Posterize', (4, 0)),
                ('Solarize', (256, 0)), ('SolarizeAdd', (0, 110)),
                ('ColorTransform', (0, 0.9)), ('Contrast', (0, 0.9)),
                ('Brightness', (0, 0.9)), ('Sharpness', (0, 0.9)),
                ('Shear', (0, 0.3)), ('Shear', (0, 0.3)),
                ('Translate', (0, 0.45)), ('Translate', (0, 0.45))
            ]
    rotate = list(randaugment)[3]
    assert rotate.interpolation == 'bicubic'
    assert tuple(rotate.pad_val) == (104, 116, 124)
    assert type(erasing).__name__ == 'RandomErasing'
    assert erasing.erase_prob == 0.25
    assert erasing.mode == 'rand'
    assert (erasing.min_area_ratio, erasing.max_area_ratio) == (0.02, 1 / 3)
    assert erasing.aspect_range == (0.3, 1 / 0.3)
    assert erasing.fill_color == [103.53, 116.28, 123.675]
    assert erasing.fill_std == [57.375, 57.12, 58.395]
    assert type(pack).__name__ == 'PackInputs'
    sample = runner.train_dataloader.dataset[0]
    assert sample['inputs'].shape == (3, 224, 224)
    assert runner.train_dataloader.drop_last


def test_test_pipeline_is_pil_bicubic_256_224(runner, imagenet):
    """As torchvision does it: resize, then crop from the middle."""
    for loader in (runner.build_dataloader(runner._val_dataloader),
                   runner.build_dataloader(runner._test_dataloader)):
        sample = loader.dataset[0]
        image = Image.open(imagenet / 'val' / '0.png')
        assert image.size == (280, 320)
        image = image.resize((256, int(256 * 320 / 280)), Image.BICUBIC)
        top = round((image.size[1] - 224) / 2)
        image = np.array(image)[top:top + 224, 16:240]
        bgr = sample['inputs'].permute(1, 2, 0).numpy()
        # The crop from the middle may round half a pixel otherwise.
        assert bgr.shape == image.shape
        assert np.array_equal(bgr[..., ::-1], image)


def test_normalization(runner):
    preprocessor = runner.model.data_preprocessor
    red = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[:, 2] = 255  # images are read as BGR
    x = preprocessor(dict(inputs=red), training=False)['inputs']
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    wanted = (torch.tensor([1., 0., 0.]) - mean) / std
    torch.testing.assert_close(
        x.cpu(), wanted[:, None, None].expand(2, 3, 4, 4), atol=1e-5,
        rtol=1e-5)


def test_targets_and_loss(runner):
    """Smoothed, mixed, and the mean over samples and classes."""
    model = runner.model.train()
    shares = []
    dataset = runner.train_dataloader.dataset
    batch = pseudo_collate([dataset[0], dataset[1]])
    labels = [int(sample.gt_label) for sample in batch['data_samples']]
    assert labels == [0, 1]
    for _ in range(20):
        data = model.data_preprocessor(copy.deepcopy(batch), training=True)
        scores = torch.stack([s.gt_score for s in data['data_samples']])
        # Not smoothed yet: the shares of the two images in the mixture.
        torch.testing.assert_close(scores[:, :2].sum(1), torch.ones(BATCH))
        assert scores[:, 2:].abs().max() == 0
        shares += [float(score[i]) for score, i in zip(scores, labels)]
    assert any(0.01 < share < 0.99 for share in shares)

    # Logits of a trained network, which are far from 0.
    logits = 3 * torch.randn(BATCH, 1000, dtype=torch.float64)
    loss = model.head.loss_module(logits, scores.double(), avg_factor=BATCH)
    on, off = 0.9 + 0.1 / 1000, 0.1 / 1000
    share = scores.double().numpy()
    target = share * on + (1 - share) * off
    p = 1 / (1 + np.exp(-logits.numpy()))
    bce = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    assert bce.shape == (BATCH, 1000)
    assert float(loss) == pytest.approx(bce.mean(), rel=1e-9)
    # And this is what the whole model trains on.
    torch.manual_seed(1)
    whole = model(**data, mode='loss')['loss']
    torch.manual_seed(1)
    logits = model.head(model.extract_feat(data['inputs']))
    torch.testing.assert_close(whole, model.head.loss_module(logits, scores))


def test_auto_scale_lr(runner):
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert groups[-1]['lr'] == pytest.approx(RECIPE['6'][0] * BATCH / 1024)
