# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A file of each format, opened in its runtime, has PyTorch's outputs."""
import importlib.util
import logging

import pytest
import torch
from narrow import (
    METADATA,
    NARROW_ARCHS,
    classifier,
    needs,
    relative_error,
    vanillanet,
)
from torch import nn

from mmvanilla.export.exported import Exported, read_metadata
from mmvanilla.export.formats import FORMATS, check_format, write
from mmvanilla.export.network import Network
from mmvanilla.export.to_onnx import FixedMaxPool2d
from mmvanilla.utils.errors import UserError

ALL_FORMATS = [
    pytest.param(name, marks=pytest.mark.slow if name == 'aoti' else ())
    for name in FORMATS
]


@pytest.fixture(scope='module', params=ALL_FORMATS)
def exported(request, tmp_path_factory):
    """A format, and ``classifier()`` in it, with all that is dynamic."""
    format = request.param
    needs(*FORMATS[format].packages)
    path = tmp_path_factory.mktemp(format) / f'net{FORMATS[format].suffix}'
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
    metadata = read_metadata(path)  # which finds the format
    assert metadata['input_shape'] == [-1, 3, -1, -1]
    assert metadata['precision'] == 'fp32'
    assert METADATA.items() <= metadata.items()
    net, run = classifier(), Exported(path, format, threads=1)
    with torch.no_grad():
        for shape in ((1, 64, 64), (3, 64, 64), (17, 64, 64), (1, 97, 98),
                      (1, 224, 225)):
            x = torch.randn(shape[0], 3, *shape[1:])
            assert relative_error(run(x), net(x)) < 1e-5
            # Another layout of the same image is the same image.
            x = x.to(memory_format=torch.channels_last)
            assert relative_error(run(x), net(x)) < 1e-5
    for shape in ((1, 4, 64, 64), (3, 64, 64)):
        with pytest.raises(UserError, match=r'shape \[-1, 3, -1, -1\].*got'):
            run(torch.zeros(shape))


def test_files_of_others(exported, tmp_path):
    format, path = exported
    with pytest.raises(UserError, match='one of onnx, openvino, pt2, aoti'):
        read_metadata(path, 'tflite')
    with pytest.raises(UserError, match='there is no file .*nothing'):
        read_metadata(tmp_path / 'nothing', format)
    for name, sentence in ((path.name, 'that mmvanilla exported as'),
                           ('net.tflite', 'one of onnx, openvino, pt2, aoti')):
        for suffix in (path.suffix, '.tflite', '.bin'):
            (tmp_path / f'net{suffix}').write_bytes(b'no network')
        with pytest.raises(UserError, match=sentence):
            read_metadata(tmp_path / name)


@pytest.mark.parametrize('format', ['openvino', 'pt2'])
def test_bf16_is_close(format, tmp_path):
    needs(*FORMATS[format].packages)
    net, path = classifier(), tmp_path / f'net{FORMATS[format].suffix}'
    x = torch.randn(1, 3, 64, 64)
    write(net, x, path, format, 'bf16')
    with torch.no_grad():
        out = Exported(path)(x)
        assert out[0].dtype == torch.float32
        error = relative_error(out, net(x))
    assert error < 0.02
    # OpenVINO rounds only on CPUs that compute in bfloat16.
    assert format == 'openvino' or error > 1e-4
    if format == 'openvino':  # whose file holds float32
        parameters = sum(p.numel() for p in net.parameters())
        assert path.with_suffix('.bin').stat().st_size >= 4 * parameters


def test_outputs_of_a_backbone_have_names(tmp_path):
    needs(*FORMATS['onnx'].packages)
    import onnx
    backbone = vanillanet(NARROW_ARCHS['5'], out_indices=(0, 1, 2))
    net = Network(backbone, num_outputs=3)
    path, x = tmp_path / 'backbone.onnx', torch.randn(1, 3, 64, 64)
    write(net, x, path, 'onnx')
    with torch.no_grad():
        assert relative_error(Exported(path)(x), net(x)) < 1e-5
    names = [output.name for output in onnx.load(path).graph.output]
    assert names == ['feature_0', 'feature_1', 'feature_2']


def test_openvino_refuses_other_weights(tmp_path):
    needs(*FORMATS['openvino'].packages)
    x = torch.randn(1, 3, 64, 64)
    for name in ('a', 'b'):
        net = classifier()
        if name == 'b':
            net.head.classifier.bias.data += 1
        write(net, x, tmp_path / f'{name}.xml', 'openvino')
    Exported(tmp_path / 'a.xml')
    (tmp_path / 'b.bin').replace(tmp_path / 'a.bin')
    with pytest.raises(UserError, match='a.bin holds other weights'):
        Exported(tmp_path / 'a.xml')
    with pytest.raises(UserError, match='needs its weights beside it'):
        Exported(tmp_path / 'b.xml')


def test_what_cannot_be_written_is_refused(monkeypatch):
    for format, precision, sentence in (
        ('torchscript', 'fp32', 'must be one of onnx, openvino, pt2, aoti'),
        ('pt2', 'int8', 'pt2 has no int8: use --format onnx or openvino'),
        ('onnx', 'bf16', 'use --format openvino or pt2 or aoti'),
    ):
        with pytest.raises(UserError, match=sentence):
            check_format(format, precision)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name in ('onnxruntime', 'nncf') else find_spec(name))
    for format, precision, package in (('onnx', 'fp32', 'onnxruntime'),
                                       ('openvino', 'int8', 'nncf')):
        with pytest.raises(
                UserError,
                match=rf'{package} is not installed.*\[export\]'):
            check_format(format, precision)
    check_format('pt2', 'fp32')


def test_logging_is_as_before(tmp_path):
    """Neither what a program switched off nor its levels change."""
    logger = logging.getLogger('torch')
    before = logger.level, logging.root.level
    logging.disable(logging.INFO)
    try:
        write(classifier(), torch.randn(1, 3, 64, 64), tmp_path / 'n.pt2',
              'pt2')
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
    assert (logger.level, logging.root.level) == before


@pytest.mark.parametrize('size_in, size_out', [
    ((75, 75), (38, 38)), ((19, 20), (10, 10)), ((5, 3), (7, 3)),
    ((9, 11), (1, 4))
])
def test_fixed_max_pool_is_the_adaptive_one(size_in, size_out):
    x = torch.randn(2, 3, *size_in)
    assert torch.equal(
        FixedMaxPool2d(size_out)(x),
        nn.AdaptiveMaxPool2d(size_out)(x))


def test_adaptive_pooling_in_onnx(tmp_path):
    needs(*FORMATS['onnx'].packages)
    net = Network(vanillanet(NARROW_ARCHS['13-x1.5-ada']))
    x = torch.randn(1, 3, 224, 224)
    write(net, x, tmp_path / 'net.onnx', 'onnx', dynamic_batch=True)
    run = Exported(tmp_path / 'net.onnx')
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(run(x), net(x)) < 1e-5
    assert isinstance(net.backbone.stages[1].pool, nn.AdaptiveMaxPool2d)
    with pytest.raises(UserError, match='leave out --dynamic-size'):
        write(net, x, tmp_path / 'net.onnx', 'onnx', dynamic_size=True)
