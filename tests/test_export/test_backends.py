# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A file of each format, opened in its runtime, has PyTorch's outputs."""
import importlib.util

import pytest
import torch
from narrow import (
    METADATA,
    MUTATIONS,
    NARROW_ARCHS,
    classifier,
    mutated,
    needs,
    relative_error,
    samples,
    vanillanet,
)

from mmvanilla.export.backends import (
    BACKENDS,
    check_backend,
    open_exported,
    read_metadata,
    write,
)
from mmvanilla.export.network import Network
from mmvanilla.export.verify import verify
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module', params=BACKENDS)
def exported(request, tmp_path_factory):
    """A format, and ``classifier()`` in it, with all that is dynamic."""
    format = request.param
    needs(*BACKENDS[format].PACKAGES)
    path = tmp_path_factory.mktemp(format) / f'net{BACKENDS[format].SUFFIX}'
    write(
        classifier(),
        torch.randn(1, 3, 64, 64),
        path,
        format,
        dynamic_batch=True,
        dynamic_size=True,
        metadata=METADATA)
    return format, path


def test_metadata_and_any_batch_and_size(exported):
    format, path = exported
    metadata = read_metadata(path, format)
    assert metadata['input_shape'] == [-1, 3, -1, -1]
    assert METADATA.items() <= metadata.items()
    net, run = classifier(), open_exported(path, format, threads=1)
    with torch.no_grad():
        for shape in ((1, 64, 64), (3, 64, 64), (17, 64, 64), (1, 97, 98),
                      (1, 224, 225)):
            x = torch.randn(shape[0], 3, *shape[1:])
            assert relative_error(run(x), net(x)) < 1e-5


def test_every_format_is_told_from_a_mutated_network(exported):
    format, path = exported
    net, run = classifier(), open_exported(path, format)
    inputs, labels = samples(net)
    found = verify(
        net, run, inputs, labels, dynamic_batch=True, dynamic_size=True)
    assert found.outputs.count == 8 + 3 + 2 and found.agreement == 1
    assert found.outputs.max_rel < 1e-5
    assert found.accuracy == dict(before=100, after=100)
    for mutation in MUTATIONS:
        with pytest.raises(UserError, match='comparing the exported file'):
            verify(mutated(net, mutation), run, inputs, labels)


@pytest.mark.parametrize('format', ['openvino', 'pt2'])
def test_bf16_is_close(format, tmp_path):
    needs(*BACKENDS[format].PACKAGES)
    net, path = classifier(), tmp_path / f'net{BACKENDS[format].SUFFIX}'
    x = torch.randn(1, 3, 64, 64)
    write(net, x, path, format, 'bf16')
    with torch.no_grad():
        out = open_exported(path, format, 'bf16')(x)
        assert out[0].dtype == torch.float32
        error = relative_error(out, net(x))
    assert error < 0.02
    # OpenVINO rounds only on CPUs that compute in bfloat16.
    assert format == 'openvino' or error > 1e-4


def test_outputs_of_a_backbone_have_names(tmp_path):
    needs('onnx', 'onnxscript', 'onnxruntime')
    import onnx
    backbone = vanillanet(NARROW_ARCHS['5'], out_indices=(0, 1, 2))
    net = Network(backbone, num_outputs=3)
    path, x = tmp_path / 'backbone.onnx', torch.randn(1, 3, 64, 64)
    write(net, x, path, 'onnx')
    with torch.no_grad():
        assert relative_error(open_exported(path, 'onnx')(x), net(x)) < 1e-5
    names = [output.name for output in onnx.load(path).graph.output]
    assert names == ['feature_0', 'feature_1', 'feature_2']


def test_openvino_refuses_other_weights(tmp_path):
    needs(*BACKENDS['openvino'].PACKAGES)
    x = torch.randn(1, 3, 64, 64)
    for name in ('a', 'b'):
        net = classifier()
        if name == 'b':
            net.head.classifier.bias.data += 1
        write(net, x, tmp_path / f'{name}.xml', 'openvino')
    open_exported(tmp_path / 'a.xml', 'openvino')
    (tmp_path / 'b.bin').replace(tmp_path / 'a.bin')
    with pytest.raises(UserError, match='a.bin holds other weights'):
        open_exported(tmp_path / 'a.xml', 'openvino')
    with pytest.raises(UserError, match='needs its weights beside it'):
        open_exported(tmp_path / 'b.xml', 'openvino')


def test_what_cannot_be_written_is_refused(monkeypatch):
    for format, precision, sentence in (
        ('torchscript', 'fp32', 'must be one of onnx, openvino, pt2, aoti'),
        ('pt2', 'int8', 'pt2 has no int8: take --format onnx or openvino'),
        ('onnx', 'bf16', 'take --format openvino or pt2 or aoti'),
    ):
        with pytest.raises(UserError, match=sentence):
            check_backend(format, precision)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name in ('onnxruntime', 'nncf') else find_spec(name))
    for format, precision, package in (('onnx', 'fp32', 'onnxruntime'),
                                       ('openvino', 'int8', 'nncf')):
        with pytest.raises(
                UserError,
                match=rf'{package}, which the extra `export` installs: '
                r"pip install -e '.\[export\]'"):
            check_backend(format, precision)
    check_backend('pt2', 'fp32')


def test_metadata_of_another_file(exported, tmp_path):
    format, path = exported
    with pytest.raises(UserError, match='one of onnx, openvino, pt2, aoti'):
        read_metadata(path, 'tflite')
    with pytest.raises(UserError, match='there is no file .*nothing'):
        read_metadata(tmp_path / 'nothing', format)
    other = tmp_path / path.name
    other.write_bytes(b'no network')
    with pytest.raises(UserError, match=f'exported as {format}, but reading'):
        read_metadata(other, format)
