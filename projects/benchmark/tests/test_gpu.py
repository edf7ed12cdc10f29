# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The path of a GPU, on a CPU: only clock and graphs are replaced."""
import json
import time

import gpu
import measure
import pytest
import torch
from forms import parse_form, parts

from mmvanilla.utils.errors import UserError

QUICK = dict(device='cuda', size=(32, ), repeats=2, warmup=1, threads=1)


class Event:
    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


class Graph:
    def __init__(self, run, x):
        if x.dtype == torch.bfloat16 and x.is_contiguous():
            raise RuntimeError('not capturable')
        self.run, self.x = run, x.clone()
        self.outputs = run(self.x)

    def replay(self):
        for out, new in zip(self.outputs, self.run(self.x)):
            out.copy_(new)

    def __call__(self, x):
        self.x.copy_(x)
        self.replay()
        return self.outputs


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    changed = dict(
        Event=Event, Graph=Graph, DEVICE='cpu', COPIED=2**16, SIDE=64,
        synchronize=lambda: None, IMAGES=16, FEW=8, SPAN=0,
        is_available=lambda: True,
        properties=lambda: dict(name='none', l2_bytes=0))
    for name, value in changed.items():
        monkeypatch.setattr(gpu, name, value)
    flags = [(torch.backends.cuda.matmul, 'allow_tf32'),
             (torch.backends.cudnn, 'allow_tf32'),
             (torch.backends.cudnn, 'benchmark')]
    values = [getattr(*flag) for flag in flags]
    yield
    for flag, value in zip(flags, values):
        setattr(*flag, value)


def test_inference(tmp_path, capsys):
    wanted = ['plain', 'channels_last', 'train-graph', 'graph:bf16',
              'channels_last-graph:bf16', 'plain:tf32']
    out = str(tmp_path / 'gpu')
    measure.main(out, False, models=['5', 'ResNet-18'], forms=wanted,
                 batches=[4], **QUICK)
    result = json.loads((tmp_path / 'gpu.json').read_text())
    found = result['measurements']
    assert len(found) == 6 + 5  # ResNet has no train form
    failed = [m for m in found if 'failed' in m]
    assert {m['form'] for m in failed} == {'graph'}
    for m in found:
        if 'failed' in m:
            continue
        assert len(m['seconds']) == len(m['device_seconds']) == 2
        assert m['share'] == m['limit'] / m['median'] > 0
        assert m['error'] < (0.1 if m['precision'] == 'bf16' else 1e-4)
        assert m['labels'] > 0.9 and m['compared'] > 1
    text = (tmp_path / 'gpu.md').read_text()
    assert 'Failed: VanillaNet-5, plain PyTorch, graph, bf16, 4: ' in text
    assert text in capsys.readouterr().out
    assert len({line.count('|') for line in text.split('\n')[:11]}) == 1
    first = found[0]
    size = 4 * (first['parameters'] + 4 * (3 * 32 * 32 + 1000))
    assert first['limit'] == max(size / result['rates']['copy'], 8 * first[
        'macs'] / result['rates']['fp32'])


def test_training_and_budget(tmp_path):
    options = dict(QUICK, train=True, size=(64, ), repeats=1)
    wanted = ['train', 'train:bf16', 'channels_last-finetune:bf16',
              'plain:fp16']
    result = measure.benchmark(['5', 'ResNet-18'], wanted, [4], **options)
    found = result['measurements']
    assert [m['model'] for m in found] == 4 * ['VanillaNet-5'] + ['ResNet-18']
    assert found[0]['ratio'] == 1 and not any('failed' in m for m in found)
    assert 'activations (MB)' in measure.table(result)

    saved = []
    result = measure.benchmark(['5'], budget=1e-6, save=saved.append, **QUICK)
    assert not result['measurements'] and not saved


def test_a_form_that_fails(monkeypatch):
    """It ends neither the run nor the other forms."""
    def optimize(network, x, backend):
        if x.shape[0] == 1:
            raise torch.OutOfMemoryError('no memory')
        calls = []

        def late(x):
            calls.append(x)
            if len(calls) > 8:
                raise RuntimeError('a bad launch')
            return network(x)
        return late if x.shape[0] == 2 else lambda x: [network(x)[0] * 1.5]

    monkeypatch.setattr(gpu, 'optimize_for_inference', optimize)
    result = measure.benchmark(['5'], ['inductor', 'plain'], [1, 2, 32],
                               **dict(QUICK, repeats=30))
    bad, good = result['measurements'][::2], result['measurements'][1::2]
    assert all('failed' not in m and len(m['seconds']) == 30 for m in good)
    for m, word in zip(bad, ('no memory', 'bad launch', 'error is 0.5, over')):
        assert word in m['failed'] and 'median' not in m


@pytest.mark.parametrize('train, form, layers', [
    (False, 'channels_last', ('channels_last', None, None, None)),
    (False, 'max-autotune-graph', (None, None, 'max-autotune', 'graph')),
    (False, 'train-reduce-overhead:bf16',
     (None, 'train', 'reduce-overhead', None)),
    (False, 'triton:fp16', (None, 'triton', None, None)),
    (True, 'channels_last-finetune-compile:fp16',
     ('channels_last', 'finetune', 'compile', None)),
    *((False, form, None) for form in (
        '', 'graph-plain', 'channels_lastgraph', 'finetune', 'plain:int8',
        'triton', 'triton-graph:fp16', 'reduce-overhead-graph', 'eager')),
    *((True, form, None) for form in ('graph', 'triton:fp16', 'plain:int8')),
])
def test_names_of_forms(train, form, layers):
    if layers:
        name, _ = parse_form(form, 'fp32', 'cuda', train)
        assert tuple(parts(name)) == layers
    else:
        with pytest.raises(UserError, match='there is no'):
            parse_form(form, 'fp32', 'cuda', train)


def test_forms_for_training_on_a_cpu():
    options = dict(QUICK, device='cpu', train=True, size=(64, ), repeats=1)
    result = measure.benchmark(['5'], ['finetune', 'train'], [4], **options)
    assert [m['form'] for m in result['measurements']] == ['finetune', 'train']
    with pytest.raises(UserError, match='no plain in fp16 here'):
        measure.benchmark(['5'], ['plain:fp16'], [4], **options)
