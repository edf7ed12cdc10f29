# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What a run is refused for before its first epoch."""
import re

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from tiny import assert_same_weights, read, refusal, run, tiny_cfg
from tiny import train as train_unchecked

from mmvanilla.engine.console import read_curves
from mmvanilla.engine.weights import check_resumable, find_checkpoint
from mmvanilla.utils.errors import UserError


@METRICS.register_module(force=True)
class Count(BaseMetric):
    """How often it was asked."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        self.calls += 1
        return dict(calls=self.calls)


SAVE = 'default_hooks.checkpoint.save_best'
SCHEDULE = [dict(type='ReduceOnPlateauLR', monitor='accuracy')]
CASES = {
    'a metric that does not exist': (
        {SAVE: 'accuracy/top-1'}, r'save_best is accuracy/top-1, but .* '
        'gives accuracy/top1; did you mean accuracy/top1'),
    'a metric that may rise or fall': (
        {SAVE: 'auto', 'val_evaluator': dict(type='ConfusionMatrix')},
        'Cannot infer the rule for key confusion_matrix/result'),
    'a table': (
        {SAVE: 'confusion_matrix/result',
         'default_hooks.checkpoint.rule': 'greater',
         'val_evaluator': dict(type='ConfusionMatrix')}, 'not a number'),
    'plateau': ({'param_scheduler': SCHEDULE},
                'ReduceOnPlateauLR.monitor is accuracy, '),
    'more than there are': (
        {'val_evaluator.topk': (1, 20)},
        r'val_evaluator \(Accuracy\), tried .* Top-20 accuracy is unavail'),
    'an epoch without end': (
        {'train_dataloader.sampler': dict(type='InfiniteSampler')},
        'train_dataloader.sampler is InfiniteSampler, .*by_epoch=False'),
    'no batch': (
        {'train_dataloader.dataset.indices': 15,
         'train_dataloader.drop_last': True},
        'train_dataloader yields no batch of 16 from 15 samples'),
    'channels': ({'model.backbone.in_channels': 4},
                 'train images, of 1 x 32 x 32: .*takes 4 .* but gets 1'),
    'size': ({'model.backbone.arch':
              dict(dims=[4, 8, 8, 8, 8, 8], strides=[2, 2, 2, 2, 1])},
             'train images, of 1 x 32 x 32: .*smaller than the total stride'),
    'head': ({'model.head.num_classes': 9},
             'model.head.num_classes is 9, but the data have 10'),
    'a loss for other classes': (
        {'model.head.loss': dict(type='CrossEntropyLoss',
                                 class_weight=[1.0, 2.0])},
        'train images, of 1 x 32 x 32: .*weight'),
    'a last batch of one image': (
        {'train_dataloader.dataset.indices': 17,
         'train_dataloader.batch_size': 8,
         'train_dataloader.drop_last': False},
        'a batch of one image: set train_dataloader.drop_last'),
    'workers': ({'train_dataloader.prefetch_factor': 2}, 'num_workers > 0'),
    'a norm of gradients': (
        {'optim_wrapper.clip_grad.max_nrom': 1.0},
        "clip_grad: .*'max_nrom'"),
    'an average that begins after the end': (
        {'custom_hooks': [dict(type='EMAHook', begin_epoch=9)]},
        'begin after the run: lower its begin_epoch'),
}


@pytest.mark.parametrize('case', CASES)
def test_refusals(tmp_path, case):
    options, message = CASES[case]
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.merge_from_dict({
        key: dict(value, _delete_=True) if isinstance(value, dict) else value
        for key, value in options.items()})
    text = refusal(cfg, tmp_path)
    assert re.search(message, text), text


def test_a_run_is_the_same(tmp_path):
    """As without checks, with a metric that counts its calls, to the bit."""
    weights, scores = [], []
    for name, run_it in (('with', lambda cfg: run(cfg, tmp_path)),
                         ('without', train_unchecked)):
        cfg = tiny_cfg(tmp_path / name, epochs=2, decay_epochs=1)
        cfg.train_dataloader.dataset.pipeline.insert(
            1, dict(type='RandomCrop', crop_size=32, padding=4))
        cfg.val_evaluator = [cfg.val_evaluator, dict(type='Count')]
        cfg.model.backbone.norm_cfg = dict(type='BN', momentum=0.9)
        info = run_it(cfg).message_hub
        weights.append(read(tmp_path / name / 'epoch_2.pth')['state_dict'])
        scores.append({k: v.data for k, v in info.log_scalars.items()
                       if k.startswith('val/') and 'time' not in k})
    assert_same_weights(*weights)
    assert scores[0].keys() == {'val/accuracy/top1', 'val/calls'}
    for key in scores[0]:
        assert scores[0][key][0].tolist() == scores[1][key][0].tolist()
    log = next((tmp_path / 'with').glob('*/*.log')).read_text()
    assert log.count('accuracy/top1') == 2  # of two epochs


def test_resuming_with_other_data(tmp_path):
    cfg = tiny_cfg(tmp_path / 'work', epochs=1, decay_epochs=1)
    run(cfg, tmp_path)
    checkpoint = str(tmp_path / 'work' / 'epoch_1.pth')
    digits = list('0123456789')
    for names, message in [
            (digits[::-1], '0, 1, .*, 8, 9, but those .*9, 8, .*, 1, 0;'),
            ([f'digit {i}' for i in range(50)],
             '50 names, 0: digit 0, 1: digit 1, .* and 39 more;')]:
        cfg = tiny_cfg(tmp_path / 'other', epochs=2)
        for split in ('train', 'val'):
            cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=names)
        cfg.model.head.num_classes = len(names)
        with pytest.raises(UserError, match=message):
            run(cfg, tmp_path, resume=checkpoint)


@pytest.mark.parametrize('damage', [
    dict(optimizer=[1]), dict(message_hub=3)])
def test_states_of_other_types(tmp_path, damage):
    content = dict(state_dict={}, message_hub=dict(
        log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer=dict(state={}, param_groups=[]), meta=dict(epoch=1, iter=4))
    torch.save(content, tmp_path / 'epoch_1.pth')
    assert find_checkpoint(str(tmp_path))[0] == str(tmp_path / 'epoch_1.pth')
    torch.save(content | damage, tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match='holds no state of the optim'):
        check_resumable(str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(UserError, match='nothing to resume'):
        find_checkpoint(str(tmp_path))


def test_a_loop_of_iterations_saves_by_them(tmp_path):
    """Where the config leaves the hooks as they are for epochs."""
    cfg = tiny_cfg(tmp_path / 'work')
    cfg.train_cfg = dict(by_epoch=False, max_iters=7, val_interval=3)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.param_scheduler = None
    run(cfg, tmp_path)
    assert {x.name for x in (tmp_path / 'work').glob('*.pth')} == {
        'iter_3.pth', 'iter_6.pth', 'iter_7.pth'}
    curves, unit = read_curves(tmp_path / 'work')
    assert unit == 'iteration' and [*curves['accuracy/top1']] == [3, 6, 7]
