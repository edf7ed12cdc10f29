# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
from argparse import ArgumentParser

import pytest
import torch
from mmengine.config import Config, DictAction
from tiny import DIGITS, ROOT, refused, tiny_cfg

from mmvanilla.utils.cfg_options import apply_cfg_options, parse_cfg_options
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError

FINETUNE = DIGITS.parent / 'vanillanet-6_finetune.py'
IMAGENET = DIGITS.parent / 'vanillanet-6_8xb128_in1k.py'
NEW_STYLE = ROOT / 'tests/data/new_style_config.py'


def value(text: str, key: str = 'a.b'):
    return parse_cfg_options([f'{key}={text}'])[key]


@pytest.mark.parametrize('text', [
    'C:\\runs (2)\\new, best\\e.pth', "~/O'Hara's/e.pth", '2026_11_05', '0012',
    'https://h.org/e.pth?id=1&name=a,b', '[old] e.pth', '(1) or (2)', '1_000',
    'epoch_{}.pth', '{epoch}', 'a[0](1)', 'cat,dog', '1,a', '5,000', 'none',
    '1e', '\uff11\uff12', '', 'x=[1,2]', "'a' or 'b'",
])
def test_text_is_what_was_typed(text):
    assert value(text) == text
    for quote in '"\'':
        if quote not in text:
            assert value(f'{quote}{text}{quote}') == text
            assert value(f'[{quote}{text}{quote}, 1]') == [text, 1]


@pytest.mark.parametrize('text', [
    '3', '-3', '+3', '2.5', '.5', '5.', '1e-3', '-1E5', 'inf', 'True', 'false',
    'None', '1,2', '0.9,.999', '[1,2]', '(1,2)', '[]', '()', '(1)', '[1,]',
    '[a,b]', '[(1,2),[a,b]]', '((1,2),)', '[1,None,x]', '-1,inf', '[inf]'])
def test_the_syntax_of_mmengine(text):
    parser = ArgumentParser()
    parser.add_argument('--set', nargs='+', action=DictAction)
    theirs = parser.parse_args(['--set', f'key={text}']).set['key']
    assert value(text) == theirs and type(value(text)) is type(theirs)


def test_values_beyond_those_of_mmengine():
    assert value('[a b, "c, d", (e f, 1)]') == ['a b', 'c, d', ('e f', 1)]
    assert value('{type: A, "b":[1, {c:2}], d: C:\\x}') == dict(
        type='A', b=[1, dict(c=2)], d='C:\\x')
    assert value("{'type':'A','b':1}") == dict(type='A', b=1)
    assert [value(f'"{x}"') for x in ('7', 'None', 'True', '[1]')] == [
        '7', 'None', 'True', '[1]']
    for text in '[1,2', '(a', '[a(b]':
        with pytest.raises(UserError, match='brackets .* do not match'):
            value(text)


@pytest.mark.parametrize('key', [
    'load_from', 'work_dir', 'experiment_name', 'x.data_root', 'x.ann_file',
    'x.data_prefix.img', 'x.init_cfg.checkpoint', 'x.metainfo.classes.0'])
def test_digits_of_paths_and_names(key):
    assert value('2024', key) == '2024' and value('1.10', key) == '1.10'
    assert value('None', key) is None


def test_digits_of_classes():
    key = 'x.metainfo.classes'
    assert value('[7, 1e5, a]', key) == ['7', '1e5', 'a']
    assert value('7', 'model.head.num_classes') == 7


@pytest.mark.parametrize('config, options, key, expected', [
    (DIGITS, ['model.backbone.arch.dims.3=8'], 'model.backbone.arch.dims',
     [64, 128, 192, 8]),
    (DIGITS, ['custom_hooks.1.interval=2', 'custom_hooks.1._delete_=True',
              'custom_hooks.1.type=CheckpointHook'], 'custom_hooks.1',
     dict(type='CheckpointHook', interval=2)),
    (DIGITS, ['model.backbone.arch={_delete_: True, dims: [8, 8]}'],
     'model.backbone.arch', dict(dims=[8, 8])),
    (DIGITS, ['randomness={deterministic: True}'], 'randomness',
     dict(seed=0, deterministic=True)),
    (FINETUNE, ['model.train_cfg._delete_=True', 'model.train_cfg.a=1'],
     'model.train_cfg', dict(a=1)),
    (FINETUNE, ['model.head.loss._delete_=False', 'model.head.loss.type=A'],
     'model.head.loss', dict(type='A', label_smooth_val=0.1)),
    (NEW_STYLE, ['optim_wrapper.optimizer.type=SGD'],
     'optim_wrapper.optimizer', dict(type='SGD', lr=1e-2)),
])
def test_what_is_set(config, options, key, expected):
    node = read_config(str(config), parse_cfg_options(options))
    for name in key.split('.'):
        node = node[int(name) if name.isdigit() else name]
    assert node == expected


@pytest.mark.parametrize('config, option, message', [
    # What is only a variable of the file.
    (DIGITS, 'test_pipeline.0.scale=40', 'test_pipeline, .* did you mean '
     r'val_dataloader\.dataset\.pipeline\.0\.scale, test_dataloader\.'),
    (DIGITS, 'data_preprocessor.std=[1]', r'model\.data_preprocessor\.std\?'),
    (FINETUNE, 'dataset_type=CUB', r'train_dataloader\.dataset\.type'),
    (FINETUNE, 'bgr_mean=[1,2,3]', 'does not read bgr_mean'),
    (IMAGENET, 'bgr_std=[1,2,3]', r'did you mean .*\.pipeline\.4\.fill_std'),
    (NEW_STYLE, 'norm_cfg.eps=1', r'model\.backbone\.norm_cfg\.eps'),
    (DIGITS, 'custom_imports.imports=[a]', 'does not read custom_imports'),
    (DIGITS, 'lr=0.1', r'did you mean optim_wrapper\.optimizer\.lr'),
    (DIGITS, 'epochs=3', r'did you mean train_cfg\.max_epochs'),
    (DIGITS, 'trian_cfg.max_epochs=1', 'did you mean train_cfg?'),
    (DIGITS, 'zzz=1', 'the config has no zzz'),
    # Deeper keys that are misspelt, also where **kwargs would take them.
    (DIGITS, 'train_dataloader.num_worker=1', 'did you mean num_workers?'),
    (DIGITS, 'default_hooks.checkpoint.save_begn=1', 'mean save_begin?'),
    (DIGITS, 'default_hooks.loger.interval=1', 'did you mean logger?'),
    (DIGITS, 'optim_wrapper.paramwise_cfg.bias_decay_mlt=1', 'bias_decay_m'),
    (DIGITS, 'custom_hooks.1.checkpont=best', 'did you mean checkpoint?'),
    # Places that do not exist.
    (DIGITS, 'custom_hooks.2.type=A', r'custom_hooks is a list of 2'),
    (FINETUNE, 'param_scheduler.eta_min=1', r'param_scheduler is a list of 2'),
    (FINETUNE, 'model.train_cfg.augments=[]', 'train_cfg is None, not a dict'),
    (FINETUNE, 'model.backbone.arch.dims=[1]', "arch is '6', not a dict"),
    # Values of the wrong type.
    (DIGITS, 'val_dataloader=3', "val_dataloader takes settings, but got 3"),
    (DIGITS, 'model.backbone=resnet', "takes settings, but got 'resnet'"),
    (DIGITS, 'model.head.in_channels=many', "takes a number, but got 'many'"),
    (DIGITS, 'default_hooks.visualization.enable=Off', 'takes True or False'),
    (DIGITS, 'load_from=[a.pth]', 'load_from takes text'),
    (DIGITS, 'train_cfg.max_epochs=0', 'a whole number of at least 1, but '),
    (DIGITS, 'default_scope=mmpretrian', 'did you mean mmpretrain?'),
    (DIGITS, 'default_hooks.checkpoint.interval=often', 'takes a number'),
    (DIGITS, 'train_cfg.val_interval=0', 'val_interval must be'),
    (DIGITS, 'test_dataloader.batch_size=1.5', 'batch_size must be a whole'),
    (DIGITS, 'train_dataloader.num_workers=2.0', 'workers must be a whole'),
    (DIGITS, 'optim_wrapper.optimizer.lr=-0.1', 'lr must be a number of'),
])
def test_refusals(config, option, message):
    with pytest.raises(UserError) as error:
        read_config(str(config), parse_cfg_options([option]))
    assert re.search(message, str(error.value)), error.value
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('options', [
    ['x.y=1'], ['train_pipeline.0.scale=40'], ['model.backbone.archh=6']])
def test_allow_new_keys(options):
    cfg = read_config(str(DIGITS), parse_cfg_options(options), True)
    assert cfg != read_config(str(DIGITS))


def test_keys_that_have_an_effect():
    """Of arguments that the config leaves out, and of dicts that are free."""
    options = [
        'data_preprocessor.to_rgb=False', 'optim_wrapper.clip_grad.max_norm=5',
        'optim_wrapper.paramwise_cfg.bias_lr_mult=2', 'val_evaluator.thrs=0',
        'optim_wrapper.paramwise_cfg.custom_keys.stage1.lr_mult=1',
        'optim_wrapper.paramwise_cfg.custom_keys.stage2.lr_mult=1',
        'default_hooks.checkpoint.save_last=False', 'custom_hooks.0.x_y=1',
        'train_dataloader.prefetch_factor=2', 'custom_hooks.0.priority=HIGH',
        'model.backbone.norm_cfg.requires_grad=False', 'sync_bn=torch',
        'optim_wrapper.loss_scale=dynamic', 'param_scheduler.0.eta_min=0.1',
        'model.backbone.init_cfg.type=Pretrained', 'auto_scale_lr.rule=sqrt']
    read_config(str(FINETUNE), parse_cfg_options(options))


def test_keys_like_others_and_text_for_numbers():
    cfg = Config(dict(
        optim_wrapper=dict(
            type='AmpOptimWrapper', loss_scale=512.,
            paramwise_cfg=dict(custom_keys=dict(stage1=dict(lr_mult=2)))),
        custom_hooks=[dict(type='EMAHook', priority=49)]))
    options = parse_cfg_options([
        'optim_wrapper.loss_scale=dynamic', 'custom_hooks.0.priority=HIGH',
        'optim_wrapper.paramwise_cfg.custom_keys.stage2.lr_mult=3'])
    apply_cfg_options(cfg, options)
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.custom_hooks[0].priority == 'HIGH'
    assert [*cfg.optim_wrapper.paramwise_cfg.custom_keys] == [
        'stage1', 'stage2']


@pytest.mark.parametrize('option, sentence', [
    ('optim_wrapper.optimizer.type=Adamw2',
     'Adamw2 is not an optimizer: did you mean AdamW?'),
    ('model.head.loss.type=CrossEntropyLos',
     'CrossEntropyLos is not a model: did you mean CrossEntropyLoss?'),
    ('model.backbone.type=mmpretrain.vanillanet',
     'mmpretrain.vanillanet is not a model: did you mean '
     'mmpretrain.VanillaNet?'),
    ('param_scheduler.type=PolyLr',
     'PolyLr is not a parameter scheduler: did you mean PolyLR?'),
    ('train_dataloader.dataset.pipeline.1.type=PackInput',
     'PackInput is not a transform: did you mean PackInputs?'),
    ('val_evaluator.type=SingleLabelMetrik', 'SingleLabelMetrik is not a '
     'metric: did you mean SingleLabelMetric?'),
    ('train_dataloader.sampler.type=RepeatAugSampler2', 'RepeatAugSampler2 is '
     'not a data sampler: did you mean RepeatAugSampler?'),
    ('custom_hooks.0.type=EmaHook', 'EmaHook is not a hook: did you mean '
     'EMAHook?'),
    ('runner_type=FlexRunner', 'FlexRunner is not a runner: did you mean '
     'FlexibleRunner?'),
    ('model.backbone.type=Qqqq', 'Qqqq is not a model: custom_imports must'),
    ('optim_wrapper.optimizer.decay=1', 'AdamW has no argument decay: '),
    ('train_cfg.epochs=3', 'EpochBasedTrainLoop has no argument epochs: did '
     'you mean max_epochs?'),
    ('model.head.width=3', 'VanillaNetHead has no argument width: it has '),
    ('lr=1 --cfg-options train_cfg.max_epochs=1', '--cfg-options lr'),
    ('model.backbone.arch=vgg', 'cannot build VanillaNet: ValueError: arch'),
])
def test_misspelt_types_and_arguments(
        option, sentence, tmp_path, monkeypatch, capfd):
    tiny_cfg('work').dump(tmp_path / 'config.py')
    error = refused(monkeypatch, capfd, 'train.py', 'config.py',
                    '--cfg-options', *option.split(), cwd=tmp_path)
    assert sentence in error


def test_errors_of_building_in_other_tools(tmp_path, monkeypatch, capfd):
    cfg = tiny_cfg('work')
    cfg.model.backbone.deep_training = cfg.model.head.deep_training = False
    cfg.custom_hooks = None
    cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=build_model(cfg).state_dict()),
               tmp_path / 'a.pth')
    for tool, *options in (
            ('reparam.py', 'b.pth', '--cfg-options',
             'val_dataloader.dataset.type=DigitDataset'),
            ('test.py', '--cfg-options',
             'test_dataloader.dataset.type=DigitDataset')):
        error = refused(monkeypatch, capfd, tool, 'config.py', 'a.pth',
                        *options, cwd=tmp_path)
        assert 'is not a dataset: did you mean DigitsDataset?' in error
