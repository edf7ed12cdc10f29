# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A file of each format, opened in its runtime, has PyTorch's outputs."""
import importlib.util
import logging
import shutil

import pytest
import torch
from narrow import METADATA, classifier, needs, relative_error, vanillanet
from torch import nn

from mmvanilla.export.exported import Exported, read_metadata
from mmvanilla.export.formats import FORMATS, check_format, write
from mmvanilla.export.network import Network
from mmvanilla.export.to_onnx import FixedMaxPool2d
from mmvanilla.utils.errors import UserError


@pytest.fixture(scope='module', params=[
    'onnx', 'openvino', 'pt2', pytest.param('aoti', marks=pytest.mark.slow)])
def exported(request, tmp_path_factory):
    """A format, and ``classifier()`` in it, with all that is dynamic."""
    format = request.param
    needs(*FORMATS[format].packages)
    path = tmp_path_factory.mktemp(format) / f'net{FORMATS[format].suffix}'
    write(classifier(), torch.randn(1, 3, 64, 64), path, format,
          dynamic_batch=True, dynamic_size=True, metadata=METADATA)
    return format, path


def test_metadata_and_any_batch_and_size(exported):
    format, path = exported
    metadata = read_metadata(path)  # which finds the format
    assert metadata['input_shape'] == [-1, 3, -1, -1]
    assert metadata['precision'] == 'fp32'
    assert METADATA.items() <= metadata.items()
    net, run = classifier(), Exported(path, format, threads=1)
    with torch.no_grad():
        for n, *size in ((1, 64, 64), (17, 64, 64), (1, 97, 98)):
            x = torch.randn(n, 3, *size)
            assert relative_error(run(x), net(x)) < 1e-5
            # Another layout of the same image is the same image.
            x = x.to(memory_format=torch.channels_last)
            assert relative_error(run(x), net(x)) < 1e-5
    for shape in ((1, 4, 64, 64), (3, 64, 64)):
        with pytest.raises(UserError, match=r'shape \[-1, 3, -1, -1\].*got'):
            run(torch.zeros(shape))


def test_files_of_others(exported, tmp_path):
    """Or one of the two files of OpenVINO without the other."""
    format, path = exported
    if format == 'openvino':
        shutil.copy(path, tmp_path)
        with pytest.raises(UserError, match='needs its weights beside it'):
            Exported(tmp_path / path.name)
        weights = path.with_suffix('.bin').read_bytes()
        (tmp_path / 'net.bin').write_bytes(weights[:-400])
        with pytest.raises(UserError, match='that mmvanilla exported as'):
            Exported(tmp_path / path.name)
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


def test_what_cannot_be_written_is_refused(monkeypatch):
    for format, precision, sentence in (
        ('torchscript', 'fp32', 'must be one of onnx, openvino, pt2, aoti'),
        ('pt2', 'int8', 'pt2 has no int8: use --format onnx or openvino'),
        ('onnx', 'bf16', 'use --format openvino or pt2 or aoti')):
        with pytest.raises(UserError, match=sentence):
            check_format(format, precision)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'not installed.*\[export\]'):
        check_format('onnx', 'fp32')
    check_format('pt2', 'fp32')


def test_logging_is_as_before(tmp_path):
    loggers = logging.root, logging.getLogger('torch')
    before = [logger.level for logger in loggers]
    write(classifier(), torch.randn(1, 3, 64, 64), tmp_path / 'n.pt2', 'pt2')
    assert [logger.level for logger in loggers] == before


@pytest.mark.parametrize('size_in, size_out', [
    ((75, 75), 38), ((19, 20), (10, None)), ((5, 3), (7, 3)), ((9, 11), (1, 4))
])
def test_fixed_max_pool_is_the_adaptive_one(size_in, size_out):
    x = torch.randn(2, 3, *size_in)
    assert torch.equal(
        FixedMaxPool2d(size_out)(x), nn.AdaptiveMaxPool2d(size_out)(x))


def test_a_backbone_with_adaptive_pooling_in_onnx(tmp_path):
    needs(*FORMATS['onnx'].packages)
    import onnx
    net = Network(
        vanillanet(dict(dims=[4, 8, 8], strides=[1, 2], ada_pool=[0, 5]),
                   out_indices=(0, 1)), num_outputs=2)
    write(net, torch.randn(1, 3, 64, 64), tmp_path / 'net.onnx', 'onnx',
          dynamic_batch=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = Exported(tmp_path / 'net.onnx')(x)
        assert relative_error(out, net(x)) < 1e-5
    assert out[1].shape == (2, 8, 5, 5)
    names = [x.name for x in onnx.load(tmp_path / 'net.onnx').graph.output]
    assert names == ['feature_0', 'feature_1']
    assert isinstance(net.backbone.stages[1].pool, nn.AdaptiveMaxPool2d)
    with pytest.raises(UserError, match='leave out --dynamic-size'):
        write(net, x, tmp_path / 'net.onnx', 'onnx', dynamic_size=True)
