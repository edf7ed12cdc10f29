# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from golden import random_authors_weights
from mmengine.config import Config
from photos import write_photos
from tiny import ROOT, build, tiny_cfg, train

from mmvanilla.checkpoints import from_authors
from mmvanilla.checkpoints.hub import PUBLISHED
from mmvanilla.engine.hooks.head_size_hook import HeadSizeHook
from mmvanilla.engine.own_data import use_image_folder


def load_into(cfg, checkpoint, resume=False):
    """The weights of a run before and after it loads a checkpoint."""
    cfg.load_from = str(checkpoint)
    cfg.resume = resume
    runner = build(cfg)
    runner.register_hook(HeadSizeHook())
    runner.call_hook('before_run')  # which makes the copy of EMAHook
    before = copy.deepcopy(runner.model.state_dict())
    runner.load_or_resume()
    return before, runner


@pytest.mark.parametrize('ema', [False, True])
def test_a_head_of_another_size_is_left_out(tmp_path, ema):
    cfg = tiny_cfg(tmp_path / 'ten', epochs=1, decay_epochs=1)
    ten = train(cfg).model.state_dict()
    checkpoint = tmp_path / 'ten' / 'epoch_1.pth'

    cfg = tiny_cfg(tmp_path / 'four')
    cfg.model.head.num_classes = 4
    if ema:
        cfg.custom_hooks.append(dict(type='EMAHook'))
    before, runner = load_into(cfg, checkpoint)
    expected = {key: before[key] if key.startswith('head.') else value
                for key, value in ten.items() if not key.endswith('.lam')}
    models = [runner.model]
    if ema:
        models += [hook.ema_model.module for hook in runner.hooks
                   if hasattr(hook, 'ema_model')]
    for model in models:
        after = model.state_dict()
        assert not [key for key in expected
                    if not torch.equal(after[key], expected[key])]
    log = next((tmp_path / 'four').glob('*/*.log')).read_text()
    assert (f'The head of {checkpoint}, for 10 classes, is left out: the head '
            'for 4 classes starts from random weights.') in log

    # One of the same size is loaded as it is.
    _, runner = load_into(tiny_cfg(tmp_path / 'same'), checkpoint)
    assert torch.equal(runner.model.state_dict()['head.classifier.norm1.bias'],
                       ten['head.classifier.norm1.bias'])


@pytest.mark.parametrize('name', ['5', '6', '9', '13'])
def test_finetune_configs_load_their_network(name):
    cfg = Config.fromfile(
        ROOT / f'configs/vanillanet/vanillanet-{name}_finetune.py')
    published = PUBLISHED[cfg.load_from.removeprefix('vanillanet://')]
    assert published == dict(arch=cfg.model.backbone.arch) == dict(arch=name)


def test_finetuning_starts_from_the_official_weights(tmp_path, monkeypatch):
    """In fine-tune form, with a head for the classes of the folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub/checkpoints/vanillanet_5.pth'
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    weights = random_authors_weights([512, 1024, 2048, 4096])
    torch.save(dict(model_ema=weights), file)
    write_photos(tmp_path / 'photos', per_class=10)

    cfg = Config.fromfile(ROOT / 'configs/vanillanet/vanillanet-5_finetune.py')
    cfg.work_dir = str(tmp_path / 'work')
    use_image_folder(cfg, str(tmp_path / 'photos'), check_images=True)
    _, runner = load_into(cfg, cfg.load_from)
    model = runner.model.eval()
    assert model.head.num_classes == 4

    # What the official network computes, in train form at lambda 1.
    train_cfg = Config.fromfile(
        ROOT / 'configs/vanillanet/vanillanet-5_8xb128_in1k.py')
    official = build_official(train_cfg, weights)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (m.extract_feat(image)[-1] for m in (model, official))
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    few = sum(p.numel() for p in model.backbone.parameters())
    many = sum(p.numel() for p in official.backbone.parameters())
    assert few < 0.8 * many


def build_official(cfg, weights):
    from mmvanilla.utils.configs import build_model
    model = build_model(cfg)
    missing, unexpected = model.load_state_dict(
        from_authors(weights), strict=False)
    assert not unexpected
    assert all(key.endswith('.lam') for key in missing)
    return model
