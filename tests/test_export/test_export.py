# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What is exported runs in its own runtime and gives the same answers."""
import copy
import importlib.util

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmvanilla.export import export as export_module
from mmvanilla.export.export import (
    SUFFIXES,
    Network,
    describe,
    export,
    make_network,
    open_exported,
    read_metadata,
    write,
)
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.errors import UserError

from ..tiny import DIGITS

ARCH = dict(dims=[8, 16, 24, 24], strides=[2, 2, 1])
FORMATS = tuple(SUFFIXES)


def needs(format, *more):
    for package in (*export_module.NEEDS[format], *more):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed')


def network() -> Network:
    """A network in deploy form, in which each layer counts."""
    torch.manual_seed(0)
    net = Network(
        VanillaNet(ARCH, deploy=True),
        VanillaNetHead(10, ARCH['dims'][-1], deploy=True)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.15)
    return net


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The digits' config, narrowed, and a checkpoint of it, well trained."""
    folder = tmp_path_factory.mktemp('digits')
    cfg = read_config(str(DIGITS))
    cfg.merge_from_dict(
        dict(
            work_dir=str(folder),
            model=dict(
                backbone=dict(
                    arch=dict(
                        dims=[32, 64, 96], strides=[2, 2], _delete_=True)),
                head=dict(in_channels=96)),
            train_cfg=dict(max_epochs=6, val_interval=6),
            default_hooks=dict(
                checkpoint=dict(interval=6), logger=dict(interval=100)),
            param_scheduler=dict(T_max=6)))
    cfg.custom_hooks = [dict(type='DeepTrainingHook', decay_epochs=3)]
    cfg.experiment_name = 'export_digits'
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    return cfg, folder / 'epoch_6.pth'


@pytest.mark.parametrize('format', FORMATS)
def test_fixed_shape_agrees(format, tmp_path):
    needs(format)
    net, path = network(), tmp_path / f'net{SUFFIXES[format]}'
    x = torch.randn(1, 3, 64, 64)
    metadata = dict(labels=['a', 'b'], mean=[1.5, 2, 3], input_size=[64, 64])
    write(net, x, path, format, metadata=metadata)
    assert read_metadata(path, format) == metadata
    with torch.no_grad():
        torch.testing.assert_close(
            open_exported(path, format, threads=1)(x),
            net(x),
            rtol=1e-4,
            atol=1e-4)


@pytest.mark.parametrize('format', FORMATS)
def test_dynamic_batch_and_size(format, tmp_path):
    needs(format)
    net, path = network(), tmp_path / f'net{SUFFIXES[format]}'
    write(
        net,
        torch.randn(1, 3, 64, 64),
        path,
        format,
        dynamic_batch=True,
        dynamic_size=True)
    run = open_exported(path, format, threads=1)
    with torch.no_grad():
        for batch in (1, 3, 17):
            x = torch.randn(batch, 3, 64, 64)
            torch.testing.assert_close(run(x), net(x), rtol=1e-4, atol=1e-4)
        for size in (64, 97, 224):
            x = torch.randn(1, 3, size, size + 1)
            torch.testing.assert_close(run(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('format', ['openvino', 'torchscript', 'pt2'])
def test_bf16_is_close(format, tmp_path):
    needs(format)
    net, path = network(), tmp_path / f'net{SUFFIXES[format]}'
    x = torch.randn(1, 3, 64, 64)
    write(net, x, path, format, 'bf16')
    with torch.no_grad():
        out, reference = open_exported(path, format, 'bf16')(x)[0], net(x)[0]
    assert out.dtype == torch.float32
    assert (out - reference).norm() <= 0.02 * reference.norm()


@pytest.mark.parametrize('format', FORMATS)
def test_digits_in_fp32(digits, format, tmp_path):
    needs(format)
    cfg, checkpoint = digits
    out = tmp_path / f'net{SUFFIXES[format]}'
    report = export(cfg, checkpoint, out, format)
    assert report.samples == 355 and not report.random
    assert report.max_abs <= 1e-4
    assert report.agreement == 1
    assert report.accuracy['before'] == report.accuracy['after']
    metadata = read_metadata(out, format)
    assert metadata['labels'] == list('0123456789')
    assert metadata['mean'] == pytest.approx([77.9])
    assert metadata['std'] == pytest.approx([95.9])
    assert metadata['input_size'] == [32, 32]
    assert metadata['channel_order'] == 'gray'
    # One file, or two of OpenVINO's; nothing temporary, no external data.
    assert len(list(tmp_path.iterdir())) == (2 if format == 'openvino' else 1)


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_digits_in_int8(digits, format, tmp_path):
    needs(format, *(['nncf'] if format == 'openvino' else []))
    cfg, checkpoint = digits
    out = tmp_path / f'net{SUFFIXES[format]}'
    report = export(
        cfg, checkpoint, out, format, 'int8', calibration_samples=128)
    assert report.accuracy['before'] > 95
    assert report.accuracy['after'] >= report.accuracy['before'] - 0.5
    assert 'accuracy after' in report.table()
    weights = out.with_suffix('.bin') if format == 'openvino' else out
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    assert weights.stat().st_size < 4 * parameters


def test_backbone_of_any_model(tmp_path):
    needs('onnx')
    backbone = VanillaNet(ARCH, out_indices=(0, 1, 2), deploy=True).eval()
    detector = torch.nn.Module()
    detector.backbone, detector.with_neck = backbone, True
    with pytest.raises(UserError, match='--part backbone'):
        make_network(detector)
    net = make_network(detector, 'backbone')
    path = tmp_path / 'backbone.onnx'
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        write(net, x, path, 'onnx')
        torch.testing.assert_close(
            open_exported(path, 'onnx')(x), net(x), rtol=1e-4, atol=1e-4)
    import onnx
    names = [output.name for output in onnx.load(path).graph.output]
    assert names == ['feature_0', 'feature_1', 'feature_2']


def test_exported_graph_is_plain():
    net = network()
    program = torch.export.export(net, (torch.randn(1, 3, 64, 64), ))
    targets = {
        node.target.__name__.split('.')[0]
        for node in program.graph.nodes if node.op == 'call_function'
    }
    assert {'conv2d', 'max_pool2d', 'relu_'} <= targets
    assert not targets & {'linear', 'permute', 'contiguous', 'clone'}


def test_refusals_leave_nothing(digits, tmp_path, monkeypatch):
    cfg, checkpoint = digits
    with pytest.raises(UserError, match='must end in .pt2'):
        export(cfg, checkpoint, tmp_path / 'net.onnx', 'pt2')
    with pytest.raises(UserError, match='int8 is for onnx and openvino'):
        export(cfg, checkpoint, tmp_path / 'net.pt2', 'pt2', 'int8')
    with pytest.raises(UserError, match='does not exist'):
        export(cfg, checkpoint, tmp_path / 'no' / 'net.pt2', 'pt2')
    with pytest.raises(UserError, match='differs from PyTorch'):
        export(cfg, checkpoint, tmp_path / 'net.pt', 'torchscript', tol=-1)
    with monkeypatch.context() as patch:
        find_spec = importlib.util.find_spec
        patch.setattr(
            importlib.util, 'find_spec', lambda name: None
            if name == 'onnxruntime' else find_spec(name))
        with pytest.raises(
                UserError,
                match=r'onnxruntime is not installed: '
                r"pip install 'mmvanilla\[export\]'"):
            export(cfg, checkpoint, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_unfinished_deep_training_is_refused(digits, tmp_path):
    cfg, checkpoint = digits
    content = torch.load(checkpoint, weights_only=False)
    for key, value in content['state_dict'].items():
        if key.endswith('.lam'):
            value.fill_(0.5)
    unfinished = tmp_path / 'unfinished.pth'
    torch.save(content, unfinished)
    with pytest.raises(UserError, match='lambda is 0.5'):
        export(cfg, unfinished, tmp_path / 'net.pt', 'torchscript')
    assert not (tmp_path / 'net.pt').exists()


def test_channel_order_is_told():
    processor = torch.nn.Module()
    processor.mean = torch.tensor([1., 2, 3]).view(3, 1, 1)
    processor.std = torch.ones(3, 1, 1)
    processor.to_rgb = True
    model = torch.nn.Module()
    model.data_preprocessor = processor
    found = describe(
        Config(), model, dict(dataset_meta=dict(classes=['cat'])),
        [torch.zeros(1, 3, 5, 7)], 'model', 'fp32')
    assert found['channel_order'] == 'RGB'
    assert found['mean'] == [1, 2, 3]
    assert found['input_size'] == [5, 7]
    assert found['labels'] == ['cat']


# What else the deploy form must still do, whatever way it takes on a CPU.


def test_deploy_form_scripts():
    net = network()
    body = torch.nn.Sequential(net.backbone.stem, *net.backbone.stages)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.jit.script(body)(x), net.backbone(x)[-1])


def test_deploy_form_is_traced_by_fx():
    net = network()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.fx.symbolic_trace(net.backbone)(x), net.backbone(x))


def test_deploy_form_compiles_without_a_break():
    net = network()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_deploy_form_moves_to_dtype(dtype):
    net = network()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        moved = copy.deepcopy(net).to(dtype)
        feature = moved.backbone(x.to(dtype))[0]
        assert feature.dtype == dtype
        reference = net.backbone(x)[0]
        error = (feature.float() - reference).norm() / reference.norm()
    assert error < 0.02


@pytest.mark.parametrize('train_form', [False, True])
def test_memory_format_changes_no_answer(train_form):
    net = network()
    if train_form:
        net = Network(VanillaNet(ARCH), VanillaNetHead(10, 24)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        reference = net(x)
        torch.testing.assert_close(
            net(x.to(memory_format=torch.channels_last)), reference)
        moved = copy.deepcopy(net).to(memory_format=torch.channels_last)
        torch.testing.assert_close(moved(x), reference)


def test_merged_weights_are_contiguous():
    net = Network(VanillaNet(ARCH), VanillaNetHead(10, 24)).eval()
    net(torch.randn(1, 3, 64, 64))
    switch_to_deploy(net)
    assert all(p.is_contiguous() for p in net.parameters())
