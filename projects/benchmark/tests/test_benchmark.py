# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What is measured and reported; never how long it took."""
import importlib.util
import json
from pathlib import Path

import forms
import measure
import pytest
import torch
from measure import MEMORY, benchmark
from subjects import PlainVanillaNet, resolve
from tiny import ROOT
from torch._dynamo.utils import counters

from mmvanilla.utils.errors import UserError

QUICK = dict(size=(32, ), repeats=2, warmup=0, threads=1)
EXPORTERS = all(map(importlib.util.find_spec, (
    'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf')))


def forms_of(result: dict) -> list[str]:
    return [m['form'] for m in result['measurements']]


def test_plain_network_is_the_same():
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        networks = measure.resolve('5').networks(x)
        (wanted, ) = networks.pop('train')(x)
        for network in networks.values():
            torch.testing.assert_close(network(x)[0], wanted)
    with torch.device('meta'):
        networks = resolve('13-x1.5-ada').training_networks(x.to('meta'))
        networks['deploy'] = PlainVanillaNet('13-x1.5-ada')
    counts = {form: sum(p.numel() for p in network.parameters())
              for form, network in networks.items()}
    assert counts['plain'] == counts['train'] == 236_942_048
    assert counts['deploy'] == 127_796_200


def test_prints_and_writes(tmp_path, capsys):
    wanted = ['train', 'plain', 'channels_last', 'eager', 'plain:bf16']
    out = str(tmp_path / 'VanillaNet-13-x1.5')
    options = dict(models=['5'], forms=wanted, batches=[1, 2], **QUICK)
    measure.main(out, False, **options)
    result = json.loads(Path(out + '.json').read_text())
    assert forms_of(result) == 2 * [form.split(':')[0] for form in wanted]
    for m in result['measurements']:
        assert len(m['seconds']) == 2 and min(m['seconds']) > 0
        assert m['ratio'] > 0 and m['share'] > 0 and m['spread'] >= 0
        assert m['accuracy'] == 72.49
    train, plain, channels_last = result['measurements'][:3]
    assert plain['ratio'] == 1
    assert channels_last['parameters'] < train['parameters']
    assert channels_last['macs'] < train['macs']
    assert result['settings']['threads'] == 1
    assert set(result['rates']) == {'fp32', 'bf16'}
    text = Path(out + '.md').read_text()
    assert capsys.readouterr().out == text + (
        f'wrote {out}.json, {out}.md, {out}.png\n')
    assert len({line.count('|') for line in text.split('\n')[:12]}) == 1
    assert Path(out + '.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    with pytest.raises(UserError, match='--force'):
        measure.main(out, False, **options)


@pytest.mark.skipif(not EXPORTERS, reason='needs the extra export')
def test_other_runtimes():
    result = benchmark(
        ['ResNet-18'], ['train', 'plain', 'onnxruntime', 'openvino:int8'],
        **QUICK)
    assert forms_of(result) == ['plain', 'onnxruntime', 'openvino']
    assert result['measurements'][2]['share'] is None
    assert result['measurements'][2]['accuracy'] == pytest.approx(69.9)


@pytest.mark.slow
def test_compiled_forms_stay_compiled(monkeypatch):
    """They are frozen, also where networks are compiled after them."""
    compiled = []
    time = measure.time
    counters.clear()  # those of other tests

    def timed(*args):
        compiled.append(counters['stats']['unique_graphs'])
        time(*args)
        compiled.append(counters['stats']['unique_graphs'])

    monkeypatch.setattr(measure, 'time', timed)
    # As many as PyTorch compiles of one class by itself; the default is 8.
    with torch._dynamo.config.patch(recompile_limit=1):
        result = benchmark(['5', '5'], ['inductor', 'aoti'], together=True,
                           **QUICK)
    assert forms_of(result) == 2 * ['inductor', 'aoti']
    assert compiled == [2, 2]


def test_networks_are_interleaved(monkeypatch):
    calls = []
    cases = measure.inference_cases

    def recorded(subject, *args):
        for m, call in cases(subject, *args):
            yield m, lambda call=call: (calls.append(subject.name[0]), call())

    monkeypatch.setattr(measure, 'inference_cases', recorded)
    # A timed call follows two that are not timed.
    for together, order in ((True, 'VVVRRR' * 2), (False, 'V' * 6 + 'R' * 6)):
        calls.clear()
        result = benchmark(['5', 'ResNet-18'], ['plain'], together=together,
                           **dict(QUICK, size=(32, 64)))
        assert ''.join(calls) == order
        # Each to its own plain form.
        assert [m['ratio'] for m in result['measurements']] == [1, 1]
    square = benchmark(['5'], ['plain'], **QUICK)['measurements'][0]['macs']
    assert result['measurements'][0]['macs'] == 2 * (square - 8000) + 8000


def test_training_step():
    result = benchmark(['5', 'ResNet-18'], batches=[4], train=True,
                       **dict(QUICK, size=(64, ), repeats=1))
    assert forms_of(result) == [
        'plain', 'train', 'with_cp', 'finetune', 'plain']
    plain, train, with_cp, finetune, resnet = result['measurements']
    assert train['ratio'] == 1 and resnet['ratio'] is None
    assert plain['macs'] == train['macs'] > finetune['macs']
    for m in result['measurements']:
        memory = m['memory']
        assert tuple(memory) == MEMORY
        assert memory['gradients'] == 4 * m['parameters']
        # Two moments of each parameter, and a step counter for each.
        assert 0 <= memory['optimizer'] - 8 * m['parameters'] < 4000
        assert memory['peak'] > sum(memory[k] for k in MEMORY[:3])
    kept = [m['memory']['activations'] for m in (train, with_cp, finetune)]
    assert max(kept[1:]) < kept[0]
    assert 'activations (MB)' in measure.table(result)


@pytest.mark.parametrize('options, sentence', [
    (dict(models=['VanilaNet-6']), 'did you mean VanillaNet-6'),
    (dict(forms=['fast']), 'a form is one of'),
    (dict(forms=['plain:int8']), 'plain has no int8'),
    (dict(batches=[0]), 'positive'),
    (dict(size=(32, 32, 3)), 'one number or two'),
    (dict(models=['no.py']), 'no config at no.py'),
])
def test_refusals(options, sentence):
    with pytest.raises(UserError, match=sentence):
        benchmark(**dict(dict(models=['5']), **QUICK) | options)


def test_whole_detector(monkeypatch):
    pytest.importorskip('mmcv.ops')
    cfg = resolve('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').cfg
    assert cfg.model.type == 'RTMDet'
    model = str(ROOT / 'tests/downstream/configs/retinanet_shapes.py')
    options = dict(models=[model], **dict(QUICK, size=(64, ), repeats=1))
    result = benchmark(forms=['train', 'plain', 'onnxruntime'], **options)
    assert forms_of(result) == ['train', 'plain', 'onnxruntime']
    with pytest.raises(UserError, match='is timed for inference'):
        benchmark(forms=['eager'], **options)

    # What detects something else is not timed.
    def write(network, *args, **kwargs):
        opened.append(lambda x: [network(x)[0] + 0.5, *network(x)[1:]])

    opened = []
    monkeypatch.setattr(forms, 'write', write)
    monkeypatch.setattr(forms, 'Exported', lambda *_: opened[0])
    with pytest.raises(UserError, match='not timed: .*: 0 of 40 agree'):
        benchmark(forms=['plain', 'onnxruntime'], **options)
