# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Weights that a run starts from, or goes on with: all of them or none."""
import pytest
import torch
from tiny import assert_same_weights, read, tiny_cfg, train

from mmvanilla.checkpoints import to_authors
from mmvanilla.engine.launch import running
from mmvanilla.layers import switch_to_deploy, switch_to_finetune
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError

EMA = dict(type='EMAHook', momentum=0.2, update_buffers=True)
STEM = 'backbone.stem.conv.conv1.weight'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The checkpoint of a run of one epoch, with an average."""
    work = tmp_path_factory.mktemp('trained')
    cfg = tiny_cfg(work, epochs=1)
    cfg.custom_hooks = [EMA]
    train(cfg)
    return work / 'epoch_1.pth'


def start(cfg, checkpoint, resume=False):
    """Load a checkpoint as tools/train.py does; the networks of the run."""
    cfg.load_from, cfg.resume = str(checkpoint), resume
    cfg.launcher = 'none'
    with running(cfg, 'short') as (runner, _):
        runner.call_hook('before_run')  # which makes the copy of EMAHook
        runner.load_or_resume()
    return [runner.model, *(hook.ema_model.module for hook in runner.hooks
                            if hasattr(hook, 'ema_model'))]


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    """One for many checkpoints, as it takes a second to build."""
    cfg = tiny_cfg(tmp_path_factory.mktemp('loads'))
    cfg.launcher = 'none'
    with running(cfg, 'short') as (runner, _):
        yield runner


def pruned(x):
    """All kinds at once: each has its first key named."""
    x['extra.a'] = x['extra.b'] = torch.zeros(1)
    del x['backbone.stages.1.act.norm.bias']
    x[STEM] = x[STEM][:3]


def in_deploy_form(x):
    model = build_model(tiny_cfg('.'))
    switch_to_deploy(model)
    return model.state_dict()


def without_head(x):
    return {k: v for k, v in x.items() if k.startswith('backbone.')}


def of_a_detector(x):
    return {k.replace('head.', 'bbox_head.'): v for k, v in x.items()}


@pytest.mark.parametrize('change, message', [
    (pruned, r'stages.1.act.norm.bias is missing, backbone.stem.\S+ has the '
     r'shape \[3, 1, 4, 4\] instead of \[4, 1, 4, 4\], extra.a is not in the '
     r'model \(and 1 more\)'),
    (in_deploy_form, 'deploy form.*deploy=True'),
    (without_head, r"head.classifier.\S+ is missing.*prefix='backbone.'"),
    (of_a_detector, r'head.classifier.\S+ is missing.*, bbox_head.\S+ is not'),
    (lambda x: dict(a=dict(x)), 'holds no weights: a is of type dict'),
    (lambda x: [1], 'is not a checkpoint: it holds a list'),
    (lambda x: to_authors(x), 'give it as vanillanet:///.*a.pth'),
])
def test_weights_to_start_from_that_do_not_fit(trained, tmp_path, runner,
                                               change, message):
    weights = read(trained)['state_dict']
    path = tmp_path / 'a.pth'
    changed = change(weights) or weights
    torch.save(changed if isinstance(changed, list) else dict(
        state_dict=changed), path)
    runner.cfg.load_from = str(path)
    with pytest.raises(UserError, match=f'a.pth .*{message}') as error:
        runner.load_checkpoint(str(path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [
    lambda c: {f'module.{k}': v for k, v in c['state_dict'].items()},
    lambda c: dict(c, state_dict={
        k: v for k, v in c['state_dict'].items() if not k.endswith('.lam')}),
    lambda c: dict(c, meta=[1])])
def test_weights_to_start_from_that_fit(trained, tmp_path, content):
    """In the network and in its average."""
    loaded = read(trained)
    torch.save(content(loaded), tmp_path / 'a.pth')
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.custom_hooks.append(EMA)
    models = start(cfg, tmp_path / 'a.pth')
    assert len(models) == 2
    for model in models:
        assert_same_weights(model.state_dict(), loaded['state_dict'])


def test_a_head_in_finetune_form_for_fewer_classes(trained, tmp_path):
    """Of the train form all but the head is merged, also in the average."""
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.model.backbone.deep_training = cfg.model.head.deep_training = False
    cfg.custom_hooks = [EMA]
    cfg.model.head.num_classes = 3
    models = start(cfg, trained)
    source = build_model(tiny_cfg('.'))
    source.load_state_dict(read(trained)['state_dict'])
    switch_to_finetune(source)
    expected = source.backbone.state_dict()
    for model in models:
        assert_same_weights(model.backbone.state_dict(), expected)
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    line, = (x for x in log.splitlines() if 'another number of classes' in x)
    assert f'WARNING - {trained}' in line and '[10, 8, 1, 1]' in line
    assert 'size mismatch' not in log
    content = read(trained)
    for key in filter(lambda x: x.endswith('.lam'), content['state_dict']):
        content['state_dict'][key] = torch.tensor(0.3)
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='a.pth .*its lambda is 0.3'):
        start(cfg, tmp_path / 'a.pth')


@pytest.mark.parametrize('change, message', [
    (lambda cfg, c: cfg.model.head.update(num_classes=4),
     r'head.classifier.\S+ has the shape \[10, '),
    (lambda cfg, c: [cfg.model[x].update(deep_training=False)
                     for x in ('backbone', 'head')], 'an earlier form'),
    (lambda cfg, c: c['state_dict'].pop(STEM), f'{STEM} is missing'),
    (lambda cfg, c: c['ema_state_dict'].pop(f'module.{STEM}'),
     f'ema_state_dict .*module.{STEM} is missing')])
def test_resuming_is_strict(trained, tmp_path, change, message):
    cfg, content = tiny_cfg(tmp_path / 'work'), read(trained)
    cfg.custom_hooks.append(EMA)
    change(cfg, content)
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message):
        start(cfg, tmp_path / 'a.pth', resume=True)
