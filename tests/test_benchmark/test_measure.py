# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Form and sense of what is measured; never how long it took."""
import importlib.util
import json
import math

import pytest
import torch

from mmvanilla.benchmark.measure import (
    Measurement,
    PlainVanillaNet,
    benchmark,
    parse_form,
    plain_like,
    resolve,
    vanillanet,
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


def test_plain_form_is_the_same_network():
    for arch in ('5', '6', '13-x1.5-ada'):
        with torch.device('meta'):
            plain = PlainVanillaNet(**VanillaNet.arch_settings[arch])
            plain_train = PlainVanillaNet(
                **VanillaNet.arch_settings[arch], train_form=True)
            ours, ours_train = vanillanet(arch), vanillanet(arch, False)
        for a, b in ((plain, ours), (plain_train, ours_train)):
            assert sum(p.numel() for p in a.parameters()) == sum(
                p.numel() for p in b.parameters())


def test_plain_form_gives_the_same_answers():
    ours = vanillanet('5', deploy=False).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = ours(x)[0]
        switch_to_deploy(ours)
        plain = plain_like(ours, '5').eval()
        torch.testing.assert_close(plain(x), ours(x)[0])
        torch.testing.assert_close(plain(x), before)


def test_forms_in_pytorch(tmp_path):
    result = benchmark(['5'], ['train', 'plain', 'ours', 'plain:bf16'],
                       batches=[1, 2], **QUICK)
    assert [(m.form, m.precision, m.batch) for m in result.measurements] == [
        (form, precision, batch) for batch in (1, 2)
        for form, precision in (('train', 'fp32'), ('plain', 'fp32'),
                                ('ours', 'fp32'), ('plain', 'bf16'))
    ]
    for m in result.measurements:
        assert len(m.seconds) == 2 and min(m.seconds) > 0
        assert m.ratio > 0 and m.share > 0 and m.spread >= 0
        assert m.accuracy == 72.49
    plain = result.measurements[1]
    assert plain.ratio == 1
    assert result.measurements[0].parameters > plain.parameters
    assert result.measurements[0].macs > plain.macs

    written = result.save(str(tmp_path / 'VanillaNet-13-x1.5'))
    assert [w.rsplit('.')[-1] for w in written] == ['json', 'md', 'png']
    content = json.loads((tmp_path / 'VanillaNet-13-x1.5.json').read_text())
    assert content['machine']['versions']['torch'] == torch.__version__
    assert content['settings']['threads'] == 1
    assert set(content['rates']) == {'fp32', 'bf16'}
    assert len(content['measurements']) == 8
    image = (tmp_path / 'VanillaNet-13-x1.5.png').read_bytes()
    assert image[:8] == b'\x89PNG\r\n\x1a\n' and len(image) < 300e3
    lines = result.table().split('\n')
    assert len({line.count('|') for line in lines[:10]}) == 1
    assert '1 threads' in lines[-1]


@pytest.mark.parametrize('form', [
    'onnxruntime', 'onnxruntime:int8', 'openvino', 'openvino:bf16',
    'openvino:int8'
])
def test_forms_in_other_runtimes(form):
    name, precision = parse_form(form)
    needs('onnx', 'onnxscript', name,
          *(['nncf'] if form == 'openvino:int8' else []))
    result = benchmark(['5'], ['plain', form], **QUICK)
    assert [m.form for m in result.measurements] == ['plain', name]
    assert (result.measurements[1].share is None) == (precision == 'int8')


def test_compiled_form():
    result = benchmark(['5'], ['plain', 'compiled'], **QUICK)
    assert [m.form for m in result.measurements] == ['plain', 'compiled']


def test_peer_from_mmpretrain():
    result = benchmark(['ResNet-18'], ['plain', 'ours', 'train'], **QUICK)
    peer, = result.measurements
    assert peer.form == 'plain' and peer.parameters == 11_689_512
    assert peer.accuracy == pytest.approx(69.9)


def test_training_step():
    result = benchmark(
        ['5'], batches=[4], train=True, **dict(QUICK, size=128))
    plain, ours, checkpointed = result.measurements
    assert (plain.form, ours.form,
            checkpointed.form) == ('plain', 'ours', 'checkpointed')
    assert plain.parameters == ours.parameters
    own = 4 * plain.parameters
    assert ours.peak_bytes > checkpointed.peak_bytes > own
    assert plain.peak_bytes > own
    assert 'memory ratio' in result.table()


def test_numbers_are_what_they_say():
    m = Measurement('a', 'plain', 'fp32', 2, [1.0, 2.0, 4.0], 10, 3 * 10**9)
    assert m.median == 2
    assert m.gflops == 6
    assert m.spread == pytest.approx(1.5 / 2)
    assert not math.isnan(Measurement('a', 'plain', 'fp32', 1, [1.]).spread)


def test_refusals(monkeypatch):
    assert resolve('VanillaNet-13') == ('VanillaNet-13', '13')
    with pytest.raises(UserError, match='did you mean VanillaNet-'):
        resolve('VanilaNet-6')
    with pytest.raises(UserError, match='a form is one of'):
        benchmark(['5'], ['fast'], **QUICK)
    with pytest.raises(UserError, match='int8 is for'):
        benchmark(['5'], ['ours:int8'], **QUICK)
    with pytest.raises(UserError, match='positive'):
        benchmark(['5'], batches=[0], **QUICK)
    with pytest.raises(UserError, match='of VanillaNet only'):
        benchmark(['ResNet-18'], train=True, **QUICK)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name == 'openvino' else find_spec(name))
    with pytest.raises(UserError, match='openvino is not installed'):
        benchmark(['5'], ['openvino'], **QUICK)
