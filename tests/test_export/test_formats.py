# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A file of each format, opened in its runtime, has PyTorch's outputs."""
import copy
import importlib.util
import json
import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
from narrow import (
    METADATA,
    classifier,
    needs,
    randomize,
    relative_error,
    vanillanet,
)
from tiny import ROOT
from torch import nn

from mmvanilla.export.exported import Exported, read_metadata
from mmvanilla.export.formats import FORMATS, check_format, write
from mmvanilla.export.network import Network
from mmvanilla.export.to_onnx import FixedMaxPool2d
from mmvanilla.models import VanillaNet
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
        for others, message in (
                (weights[:-400], 'that mmvanilla exported as'),
                (weights[:-1] + b'x', 'net.bin .* the weights of .*net.xml')):
            (tmp_path / 'net.bin').write_bytes(others)
            with pytest.raises(UserError, match=message):
                Exported(tmp_path / path.name)
    with pytest.raises(UserError, match='one of onnx, openvino, pt2, aoti'):
        Exported(path, 'tflite')
    with pytest.raises(UserError, match='there is no file .*nothing'):
        Exported(tmp_path / 'nothing', format)
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


def test_fp16_in_onnx(tmp_path):
    """Weights and layers in float16, inputs and outputs in float32."""
    needs(*FORMATS['onnx'].packages)
    import onnx
    net, x, path = classifier(), torch.randn(1, 3, 64, 64), tmp_path / 'n.onnx'
    write(net, x, path, 'onnx', 'fp16')
    with torch.no_grad():
        assert 1e-5 < relative_error(Exported(path)(x), net(x)) < 0.002
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {v.name: v.type.tensor_type.elem_type
             for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {v.name: v.data_type for v in graph.initializer}
    half = onnx.TensorProto.FLOAT16
    layers = [node for node in graph.node if node.op_type == 'Conv']
    assert layers and all({types[name] for name in (
        *node.input, *node.output)} == {half} for node in layers)
    assert {types['input'], types['logits']} == {onnx.TensorProto.FLOAT}


def test_fp16_weights_in_openvino(tmp_path):
    needs(*FORMATS['openvino'].packages)
    import openvino
    net, x, path = classifier(), torch.randn(1, 3, 64, 64), tmp_path / 'n.xml'
    write(net, x, path, 'openvino', 'fp16')
    with torch.no_grad():
        assert 1e-5 < relative_error(Exported(path)(x), net(x)) < 0.002
    model = openvino.Core().read_model(path)
    assert {str(port.get_element_type()) for port in (
        *model.inputs, *model.outputs)} == {"<Type: 'float32'>"}
    weights = [op for op in model.get_ops() if op.get_type_name() == 'Constant'
               and len(op.shape) == 4 and op.get_element_type().is_real()]
    assert weights and {op.get_element_type().bitwidth
                        for op in weights} == {16}


@pytest.mark.parametrize('kept', [0, 2])
def test_last_layers_stay_in_float(kept, tmp_path):
    """In int8 of OpenVINO, the others have a scale for each channel."""
    needs(*FORMATS['openvino'].packages, 'nncf')
    import openvino
    net, x, path = classifier(), torch.randn(1, 3, 64, 64), tmp_path / 'n.xml'
    net.float_layers = kept
    write(net, x, path, 'openvino', 'int8', calibration=[x])
    layers = [op for op in openvino.Core().read_model(path).get_ordered_ops()
              if 'Convolution' in op.get_type_name()]
    factors = [op.input_value(1).get_node() for op in layers]
    # In the file, a depthwise weight is reshaped after its scale.
    factors = [op.input_value(0).get_node() if op.get_type_name() == 'Reshape'
               else op for op in factors]
    scaled = [op.get_type_name() == 'Multiply' for op in factors]
    assert scaled == [True] * (len(layers) - kept) + [False] * kept
    assert all(op.input_value(1).shape[0] == op.shape[0] > 1
               for op, is_scaled in zip(factors, scaled) if is_scaled)


@pytest.mark.parametrize('opset', [17, 20])
def test_opset(opset, tmp_path):
    needs(*FORMATS['onnx'].packages)
    import onnx
    net, x, path = classifier(), torch.randn(2, 3, 64, 64), tmp_path / 'n.onnx'
    write(net, x[:1], path, 'onnx', dynamic_batch=True, opset=opset)
    with torch.no_grad():
        assert relative_error(Exported(path)(x), net(x)) < 1e-5
    assert [(x.domain, x.version)
            for x in onnx.load(path).opset_import] == [('', opset)]
    assert read_metadata(path)['opset'] == opset


class Smaller(nn.Module):

    def forward(self, x):
        return [nn.functional.interpolate(
            x, scale_factor=0.5, mode='bilinear', antialias=True)]


def test_opset_17_lacks_what_a_network_needs(tmp_path):
    needs(*FORMATS['onnx'].packages)
    x = torch.rand(1, 3, 64, 64)
    net = Network(Smaller())
    with pytest.raises(UserError, match='cannot be written in opset 17'):
        write(net, x, tmp_path / 'n.onnx', 'onnx', opset=17)


@pytest.mark.parametrize('format, channels, order', [
    ('onnx', 3, 'BGR'), ('openvino', 3, 'BGR'), ('pt2', 3, 'RGB'),
    ('pt2', 1, 'gray'),
    pytest.param('aoti', 3, 'RGB', marks=pytest.mark.slow)])
def test_from_pixels(format, channels, order, tmp_path):
    """Of the file by its runtime, against arithmetic in float64."""
    needs(*FORMATS[format].packages)
    net = Network(randomize(VanillaNet(
        dict(dims=[8, 8, 8], strides=[2, 2]), channels, deploy=True)))
    mean, std = [103.5, 116.25, 123.625][:channels], [57, 58, 59.5][:channels]
    path = tmp_path / f'net{FORMATS[format].suffix}'
    dynamic = format != 'aoti'  # where fixed sizes have layouts of their own
    write(net, torch.zeros(1, channels, 64, 96), path, format,
          dynamic_batch=dynamic, dynamic_size=dynamic, preprocess=True,
          metadata=dict(mean=mean, std=std, channel_order=order))
    pixels = torch.randint(
        0, 256, (1 + dynamic, 64, 96, channels), dtype=torch.uint8)
    x = pixels.numpy()[..., ::-1] if order == 'BGR' else pixels.numpy()
    x = torch.tensor((x - np.array(mean)) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x)
    run, _ = FORMATS[format].open(path, 1)
    assert relative_error([torch.as_tensor(y) for y in run(pixels)],
                          expected) < 1e-5
    # Given normalized images, it gets the pixels that they were made of.
    run = Exported(path)
    assert relative_error(run(x.float()), expected) < 1e-5
    assert run.metadata['input'] == 'uint8'
    assert run.metadata['input_shape'] == (
        [-1, -1, -1, channels] if dynamic else [1, 64, 96, 3])


@pytest.mark.parametrize('dynamic_batch', [False, True])
def test_opencv_reads_a_classifier(dynamic_batch, tmp_path):
    needs(*FORMATS['onnx'].packages)
    net, path = classifier(), tmp_path / 'net.onnx'
    x = torch.randn(2 if dynamic_batch else 1, 3, 64, 64)
    write(net, x[:1], path, 'onnx', dynamic_batch=dynamic_batch)
    reader = cv2.dnn.readNetFromONNX(str(path))
    reader.setInput(x.numpy())
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(reader.forward()), net(x)[0], rtol=0, atol=1e-4)


def test_what_cannot_be_written_is_refused(monkeypatch):
    for format, precision, sentence in (
        ('torchscript', 'fp32', 'must be one of onnx, openvino, pt2, aoti'),
        ('pt2', 'int8', 'pt2 has no int8: use --format onnx or openvino'),
        ('pt2', 'fp16', 'pt2 has no fp16: use --format onnx or openvino'),
        ('onnx', 'bf16', 'use --format openvino or pt2 or aoti')):
        with pytest.raises(UserError, match=sentence):
            check_format(format, precision)
    for format, opset, sentence in (
        ('pt2', 18, 'pt2 has no opset 18: leave out --opset'),
        ('onnx', 16, 'no opset 16: use 17 to 2[0-9]$'),
        ('onnx', 99, 'no opset 99: use 17 to 2[0-9]$')):
        needs(*FORMATS[format].packages)
        with pytest.raises(UserError, match=sentence):
            check_format(format, 'fp32', opset)
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


def test_the_table_of_runtimes():
    from test_export import runtimes
    page = ROOT / 'docs' / 'en' / 'deployment.md'
    assert f'\n{runtimes.table(json.loads(runtimes.OUT.read_text()))}\n' in (
        page.read_text())
