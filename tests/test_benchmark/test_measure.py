# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What is measured and reported; never how long it took."""
import importlib.util
import json
import math

import pytest
import torch

from mmvanilla.benchmark import benchmark, measure
from mmvanilla.benchmark.forms import parse_form
from mmvanilla.benchmark.networks import plain_like, resolve, vanillanet
from mmvanilla.benchmark.plain import PlainVanillaNet
from mmvanilla.benchmark.report import (
    MEMORY,
    Measurement,
    check_outputs,
)
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

QUICK = dict(size=32, repeats=2, warmup=0, threads=1, progress=False)
ARCH = dict(dims=[4, 8, 8], strides=[2, 1])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network that takes no time, under a name of the published ones."""
    monkeypatch.setitem(VanillaNet.arch_settings, '5', ARCH)


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed')


def test_plain_network_has_the_same_parameters():
    for arch in ('5', '6', '13-x1.5-ada'):
        with torch.device('meta'):
            plain = PlainVanillaNet(**VanillaNet.arch_settings[arch])
            plain_train = PlainVanillaNet(
                **VanillaNet.arch_settings[arch], train_form=True)
            ours, ours_train = vanillanet(arch), vanillanet(arch, False)
        for a, b in ((plain, ours), (plain_train, ours_train)):
            assert sum(p.numel() for p in a.parameters()) == sum(
                p.numel() for p in b.parameters())


def test_plain_network_has_the_same_outputs():
    ours = vanillanet('5', deploy=False).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = ours(x)[0]
        switch_to_deploy(ours)
        plain = plain_like(ours, '5').eval()
        torch.testing.assert_close(plain(x), ours(x)[0])
        torch.testing.assert_close(plain(x), before)


def test_forms_in_pytorch(tmp_path):
    forms = ['train', 'plain', 'channels_last', 'eager', 'plain:bf16']
    result = benchmark(['5'], forms, batches=[1, 2], **QUICK)
    assert [(m.form, m.batch) for m in result.measurements
            ] == [(form.split(':')[0], batch) for batch in (1, 2)
                  for form in forms]
    for m in result.measurements:
        assert len(m.seconds) == 2 and min(m.seconds) > 0
        assert m.ratio > 0 and m.share > 0 and m.spread >= 0
        assert m.accuracy == 72.49
    train, plain, channels_last = result.measurements[:3]
    assert plain.ratio == 1
    assert train.parameters > plain.parameters == channels_last.parameters
    assert train.macs > plain.macs

    prefix = str(tmp_path / 'VanillaNet-13-x1.5')
    written = result.save(prefix)
    assert written == [prefix + suffix for suffix in ('.json', '.md', '.png')]
    content = json.loads((tmp_path / 'VanillaNet-13-x1.5.json').read_text())
    assert content['machine']['versions']['torch'] == torch.__version__
    assert content['settings']['threads'] == 1
    assert set(content['rates']) == {'fp32', 'bf16'}
    assert len(content['measurements']) == 10
    image = (tmp_path / 'VanillaNet-13-x1.5.png').read_bytes()
    assert image[:8] == b'\x89PNG\r\n\x1a\n' and len(image) < 300e3
    assert len({line.count('|') for line in result.table().split('\n')[:10]
                }) == 1
    # The next run may replace them, and nothing else.
    check_outputs(prefix)
    (tmp_path / 'notes.md').write_text('mine')
    with pytest.raises(UserError, match='mmvanilla did not write it'):
        check_outputs(str(tmp_path / 'notes'))
    check_outputs(str(tmp_path / 'notes'), force=True)


@pytest.mark.parametrize('form', [
    'onnxruntime', 'onnxruntime:int8', 'openvino', 'openvino:bf16',
    'openvino:int8'
])
def test_forms_in_other_runtimes(form):
    name, _, precision = form.partition(':')
    needs('onnx', 'onnxscript', name,
          *(['nncf'] if form == 'openvino:int8' else []))
    result = benchmark(['5'], ['plain', form], **QUICK)
    assert [m.form for m in result.measurements] == ['plain', name]
    assert (result.measurements[1].share is None) == (precision == 'int8')


@pytest.mark.slow
def test_compiled_forms():
    forms = ['plain', 'inductor', 'aoti']
    result = benchmark(['5'], forms, **QUICK)
    assert [m.form for m in result.measurements] == forms


def test_peer_from_mmpretrain():
    result = benchmark(['ResNet-18'], ['plain', 'eager', 'train'], **QUICK)
    plain, eager = result.measurements
    assert (plain.form, eager.form) == ('plain', 'eager')
    assert plain.parameters == eager.parameters == 11_689_512
    assert plain.accuracy == pytest.approx(69.9)


def test_networks_in_turns(monkeypatch):
    """Together, a call of one network follows a call of the other."""
    monkeypatch.setitem(VanillaNet.arch_settings, '6', ARCH)
    calls = []
    cases = measure.inference_cases

    def recorded(subject, *args):
        for m, call in cases(subject, *args):
            yield m, lambda call=call: (calls.append(subject.arch), call())

    monkeypatch.setattr(measure, 'inference_cases', recorded)
    for together, order in ((True, '5566' * 2), (False, '5555' + '6666')):
        calls.clear()
        result = benchmark(['5', '6'], ['plain'], together=together,
                           **dict(QUICK, size=(32, 48)))
        assert ''.join(calls) == order
        assert result.settings['size'] == [32, 48]
        # Each to its own plain form.
        assert [m.ratio for m in result.measurements] == [1, 1]
    square = benchmark(['5'], ['plain'], **QUICK).measurements[0].macs
    linear = ARCH['dims'][-1] * 1000
    assert result.measurements[0].macs == 1.5 * (square - linear) + linear


def test_training_step():
    result = benchmark(
        ['5', 'ResNet-18'], batches=[4], train=True, **dict(QUICK, size=64))
    plain, train, with_cp, finetune, resnet = result.measurements
    assert [m.form for m in result.measurements
            ] == ['plain', 'train', 'with_cp', 'finetune', 'plain']
    assert train.ratio == 1 and resnet.ratio is None
    assert plain.parameters == train.parameters == with_cp.parameters
    assert finetune.parameters < train.parameters
    assert finetune.macs < train.macs
    for m in result.measurements:
        memory = m.memory
        assert tuple(memory) == MEMORY
        assert memory['gradients'] == 4 * m.parameters
        # Two moments of each parameter, and a step counter for each.
        assert 0 <= memory['optimizer'] - 8 * m.parameters < 4000
        assert memory['parameters'] >= memory['gradients']
        assert memory['peak'] > memory['parameters'] + memory['optimizer']
    activations = {m.form: m.memory['activations'] for m in (
        train, with_cp, finetune)}
    assert activations['with_cp'] < activations['train']
    assert activations['finetune'] < activations['train']
    assert 'activations (MB)' in result.table()


def test_figures_are_computed_from_seconds():
    m = Measurement('a', 'plain', 'fp32', 2, [1.0, 2.0, 4.0], 10, 3 * 10**9)
    assert m.median == 2
    assert m.gflops == 6
    assert m.spread == pytest.approx(1.5 / 2)
    assert not math.isnan(Measurement('a', 'plain', 'fp32', 1, [1.]).spread)


def test_refusals(monkeypatch):
    assert resolve('VanillaNet-13') == ('VanillaNet-13', '13', None)
    assert parse_form('plain', 'bf16', 'cpu') == ('plain', 'bf16')
    if importlib.util.find_spec('openvino'):
        assert parse_form('openvino:int8', 'fp32', 'cpu') == ('openvino',
                                                              'int8')
    with pytest.raises(UserError, match='did you mean VanillaNet-'):
        resolve('VanilaNet-6')
    for form, sentence in (('fast', 'a form is one of'),
                           ('plain:int8', 'int8 is for'),
                           ('eager:bf16', 'eager is for fp32'),
                           ('onnxruntime:bf16', 'onnx has no bf16')):
        with pytest.raises(UserError, match=sentence):
            benchmark(['5'], [form], **QUICK)
    with pytest.raises(UserError, match='measured on the CPU only'):
        parse_form('eager', 'fp32', 'cuda')
    with pytest.raises(UserError, match='positive'):
        benchmark(['5'], batches=[0], **QUICK)
    with pytest.raises(UserError, match='one number or two'):
        benchmark(['5'], **dict(QUICK, size=(32, 32, 3)))
    for bad in (dict(batches=[2]), dict(forms=['eager']), dict(train=True),
                dict(forms=['plain:bf16'])):
        with pytest.raises(UserError, match=r'\(net.py\) is timed for infer'):
            benchmark(['5', 'net.py'], **bad, **QUICK)
    with pytest.raises(UserError, match='no config at net.py'):
        benchmark(['net.py'], ['plain'], **QUICK)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name == 'openvino' else find_spec(name))
    with pytest.raises(UserError, match='needs .*openvino'):
        benchmark(['5'], ['openvino'], **QUICK)
