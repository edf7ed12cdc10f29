# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The authors' recipe, read off runners that the configs build."""
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

import mmvanilla  # noqa: F401
from mmvanilla.models import VanillaNet

CONFIGS = Path(__file__).parents[1] / 'configs' / 'vanillanet'

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


def build(name: str, imagenet: Path, work_dir: Path, **options) -> Runner:
    """Build a variant's runner, with narrow layers and small batches."""
    cfg = Config.fromfile(config_file(name))
    arch = dict(VanillaNet.arch_settings[cfg.model.backbone.arch])
    arch['dims'] = [dim // 64 for dim in arch['dims']]
    if not torch.cuda.is_available():
        # There is no mixed precision without.
        assert cfg.optim_wrapper.pop('loss_scale') == 'dynamic'
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
        cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.model.backbone.arch = arch
    cfg.model.head.in_channels = arch['dims'][-1]
    cfg.work_dir = str(work_dir)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        assert loader.batch_size == 128
        loader.batch_size = BATCH
        loader.num_workers = 0
        loader.dataset.data_root = str(imagenet)
    cfg.merge_from_dict(options)
    return Runner.from_cfg(cfg)


@pytest.fixture(scope='module', params=RECIPE)
def variant(request, imagenet, tmp_path_factory):
    """Name and runner, with optimizer and schedulers built."""
    name = request.param
    runner = build(name, imagenet, tmp_path_factory.mktemp('run'))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.param_schedulers = runner.build_param_scheduler(
        runner.param_schedulers)
    return name, runner


def hook_of(runner: Runner, name: str):
    (hook, ) = [
        h for h in runner.hooks
        if name in [base.__name__ for base in type(h).__mro__]
    ]
    return hook


def groups_by_name(runner: Runner) -> dict:
    names = {id(p): n for n, p in runner.model.named_parameters()}
    groups = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for param in group['params']:
            groups[names[id(param)]] = group
    return groups


def layer_scales(name: str, runner: Runner) -> dict:
    """Scale of the learning rate by parameter, from the facts' formula."""
    decay = RECIPE[name][3]
    last = {'6': 4, '7': 5}.get(name, 0) + 1
    scales = {}
    for param, _ in runner.model.named_parameters():
        if param.startswith('backbone.stem.'):
            layer = 0
        elif param.startswith('backbone.stages.'):
            layer = int(param.split('.')[2]) + 1
        else:
            layer = last
        scales[param] = decay**(last - layer) if decay != 1 else 1.0
    return scales


def test_network(variant):
    name, runner = variant
    # The one that is named, and not the narrow one of these tests.
    cfg = Config.fromfile(config_file(name))
    assert cfg.model.backbone.arch == name
    dims = VanillaNet.arch_settings[name]['dims']
    assert cfg.model.head.in_channels == dims[-1]
    assert runner.model.head.num_classes == 1000
    assert runner.model.head.dropout.p == 0.05
    assert not runner.model.backbone.deploy
    norms = [m for m in runner.model.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(norm.eps == 1e-6 for norm in norms)


def test_optimizer(variant):
    optimizer = variant[1].optim_wrapper.optimizer
    assert type(optimizer).__name__ == 'Lamb'
    for group in optimizer.param_groups:
        assert group['betas'] == (0.9, 0.999)
        assert group['eps'] == 1e-8
        assert group['max_grad_norm'] == 1
        assert group['bias_correction'] and group['grad_averaging']
        assert not group['trust_clip'] and not group['always_adapt']
    assert not variant[1].optim_wrapper.clip_grad_kwargs


def test_weight_decay(variant):
    name, runner = variant
    groups = groups_by_name(runner)
    params = dict(runner.model.named_parameters())
    assert groups.keys() == params.keys()
    for key, param in params.items():
        flat = param.ndim == 1
        assert groups[key]['weight_decay'] == (0 if flat else RECIPE[name][1])
        assert flat or key.endswith('.weight')
    # The series activation's weight is not flat.
    series = groups['backbone.stages.0.act.conv.weight']
    assert series['weight_decay'] == RECIPE[name][1]


def test_learning_rate_over_time(variant):
    name, runner = variant
    base, last = RECIPE[name][0], 300 * EPOCH_LENGTH
    warmup = 5 * EPOCH_LENGTH
    assert runner.max_iters == last
    groups, scales = groups_by_name(runner), layer_scales(name, runner)
    hook = hook_of(runner, 'ParamSchedulerHook')

    def wanted(iteration):
        if iteration < warmup:
            return base * iteration / (warmup - 1)
        progress = (iteration - warmup) / (last - warmup)
        return 1e-6 + (base - 1e-6) * 0.5 * (1 + math.cos(math.pi * progress))

    # Numbers of the schedule itself, against a slip in the formula.
    assert wanted(0) == 0
    assert wanted(warmup - 1) == wanted(warmup) == base
    assert wanted((last + warmup) // 2) == pytest.approx((base + 1e-6) / 2)
    assert 1e-6 < wanted(last - 1) < 1e-6 + 1e-5 * base

    told = {0, warmup // 2, warmup - 1, warmup, last // 2, last - 1}
    for iteration in range(last):
        lr = wanted(iteration)
        for key, group in groups.items() if iteration in told else ():
            assert group['lr'] == pytest.approx(
                lr * scales[key], rel=1e-6, abs=1e-12), (iteration, key)
        hook.after_train_iter(runner, iteration)
        if iteration % EPOCH_LENGTH == EPOCH_LENGTH - 1:
            hook.after_train_epoch(runner)


def test_length_and_hooks(variant):
    runner = variant[1]
    assert runner.max_epochs == 300
    assert runner.train_loop.val_interval == 1
    assert len(runner.train_dataloader) == EPOCH_LENGTH
    deep_training = hook_of(runner, 'DeepTrainingHook')
    assert deep_training.decay_epochs == 100
    assert deep_training.schedule == 'linear' and not deep_training.per_iter
    ema = hook_of(runner, 'EMAHook')
    assert ema.ema_cfg == dict(
        type='ExponentialMovingAverage', momentum=4e-5, update_buffers=True)
    assert ema.begin_epoch == ema.begin_iter == 0
    checkpoint = hook_of(runner, 'CheckpointHook')
    assert checkpoint.key_indicators == ['accuracy/top1']
    assert checkpoint.by_epoch and checkpoint.interval == 1


def test_mixing(variant):
    name, runner = variant
    augments = runner.model.data_preprocessor.batch_augments
    mixup, cutmix, *rest = augments.augments
    assert type(mixup).__name__ == 'Mixup'
    assert mixup.alpha == RECIPE[name][2]
    assert type(cutmix).__name__ == 'CutMix'
    assert cutmix.alpha == 1 and cutmix.cutmix_minmax is None
    # One of the two per batch, evenly.
    assert not rest
    assert augments.probs is None


def test_train_pipeline(variant):
    pipeline = variant[1].train_dataloader.dataset.pipeline.transforms
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
    sample = variant[1].train_dataloader.dataset[0]
    assert sample['inputs'].shape == (3, 224, 224)
    assert variant[1].train_dataloader.drop_last


def test_test_pipeline_is_pil_bicubic_256_224(variant, imagenet):
    """As torchvision does it: resize, then crop from the middle."""
    runner = variant[1]
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


def test_normalization(variant):
    preprocessor = variant[1].model.data_preprocessor
    red = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[:, 2] = 255  # images are read as BGR
    x = preprocessor(dict(inputs=red), training=False)['inputs']
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    wanted = (torch.tensor([1., 0., 0.]) - mean) / std
    torch.testing.assert_close(
        x.cpu(), wanted[:, None, None].expand(2, 3, 4, 4), atol=1e-5,
        rtol=1e-5)


def test_targets_and_loss(variant):
    """Smoothed, mixed, and the mean over samples and classes."""
    model = variant[1].model.train()
    torch.manual_seed(0)
    np.random.seed(0)
    shares = []
    dataset = variant[1].train_dataloader.dataset
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


def test_auto_scale_lr(imagenet, tmp_path):
    runner = build('6', imagenet, tmp_path, **{'auto_scale_lr.enable': True})
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    wanted = RECIPE['6'][0] * BATCH / 1024
    assert wrapper.optimizer.param_groups[-1]['lr'] == pytest.approx(wanted)


def test_mixed_precision(variant):
    wrapper = Config.fromfile(config_file(variant[0])).optim_wrapper
    assert wrapper.type == 'AmpOptimWrapper'
    assert wrapper.loss_scale == 'dynamic'
    if torch.cuda.is_available():
        wrapper = variant[1].optim_wrapper
        assert type(wrapper).__name__ == 'AmpOptimWrapper'
        assert wrapper.loss_scaler.is_enabled()


def test_best_checkpoint_is_the_averaged_one(imagenet, tmp_path):
    runner = build(
        '5',
        imagenet,
        tmp_path,
        **{
            'train_cfg.max_epochs': 1,
            # So fast that the average is far from the trained weights.
            'custom_hooks.1.momentum': 0.5,
            'param_scheduler': None,
        })
    runner.train()
    (best, ) = tmp_path.glob('best_accuracy_top1_*.pth')
    saved = torch.load(best, weights_only=False)
    average = hook_of(runner, 'EMAHook').ema_model.module.state_dict()
    trained = runner.model.state_dict()
    key = 'backbone.stages.0.act.conv.weight'
    assert not torch.equal(average[key], trained[key])
    for key, value in average.items():
        assert torch.equal(saved['state_dict'][key], value)


def test_every_variant_has_a_config():
    names = {p.name for p in CONFIGS.glob('*_8xb128_in1k.py')}
    assert names == {config_file(name).name for name in RECIPE}
    assert set(RECIPE) == set(VanillaNet.arch_settings)


def test_a_config_brings_its_plugin():
    """Any toolbox's runner that reads it knows our types."""
    for name in RECIPE:
        cfg = Config.fromfile(config_file(name))
        assert cfg.custom_imports.imports == ['mmvanilla']
        assert cfg.default_scope == 'mmpretrain'
