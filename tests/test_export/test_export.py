# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a trained checkpoint to a verified file, in every format."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from narrow import MUTATIONS, NARROW_ARCHS, needs, vanillanet
from tiny import DIGITS

from mmvanilla.checkpoints import read_checkpoint
from mmvanilla.export import export
from mmvanilla.export.backends import BACKENDS, open_exported, read_metadata
from mmvanilla.export.network import describe, make_network
from mmvanilla.reparam import switch
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import is_ours


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


@pytest.mark.parametrize('format', BACKENDS)
def test_digits_in_fp32(digits, format, tmp_path):
    needs(*BACKENDS[format].PACKAGES)
    cfg, checkpoint = digits
    out = tmp_path / f'net{BACKENDS[format].SUFFIX}'
    report = export(cfg, checkpoint, out, format)
    found = report.verification
    assert found.samples == 355 and not found.random
    assert found.outputs.count == 355 and found.outputs.max_rel <= 1e-5
    assert found.agreement == 1
    assert found.accuracy['before'] == found.accuracy['after'] > 95
    metadata = read_metadata(out, format)
    assert metadata['labels'] == list('0123456789')
    assert metadata['mean'] == pytest.approx([77.9])
    assert metadata['std'] == pytest.approx([95.9])
    assert metadata['input_size'] == [32, 32]
    assert metadata['input_shape'] == [1, 1, 32, 32]
    assert metadata['channel_order'] == 'gray'
    # One file, or two of OpenVINO's, which the next run may replace.
    files = list(tmp_path.iterdir())
    assert len(files) == (2 if format == 'openvino' else 1)
    assert all(is_ours(file) for file in files)
    if format == 'aoti':
        with pytest.raises(UserError, match=r'but got \[2, 1, 32, 32\]'):
            open_exported(out, format)(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_digits_in_int8(digits, format, tmp_path):
    needs(*BACKENDS[format].PACKAGES,
          *(['nncf'] if format == 'openvino' else []))
    cfg, checkpoint = digits
    out = tmp_path / f'net{BACKENDS[format].SUFFIX}'
    report = export(
        cfg, checkpoint, out, format, 'int8', calibration_samples=128)
    accuracy = report.verification.accuracy
    assert accuracy['before'] > 95
    assert accuracy['after'] >= accuracy['before'] - 1
    assert 'accuracy after' in report.table()
    weights = out.with_suffix('.bin') if format == 'openvino' else out
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    assert weights.stat().st_size < 4 * parameters


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_a_wrong_merge_is_not_written(digits, mutation, tmp_path,
                                      monkeypatch):
    cfg, checkpoint = digits
    switch_to_deploy = switch.switch_to_deploy

    @torch.no_grad()
    def merge_wrongly(model):
        switch_to_deploy(model)
        mutation(model)

    monkeypatch.setattr(switch, 'switch_to_deploy', merge_wrongly)
    with pytest.raises(UserError, match='comparing the exported file'):
        export(cfg, checkpoint, tmp_path / 'net.pt2', 'pt2', samples=32)
    assert not list(tmp_path.iterdir())


def test_refusals_leave_nothing(digits, tmp_path):
    cfg, checkpoint = digits
    for out, options, sentence in (
        ('net.onnx', dict(format='pt2'), 'must end in .pt2'),
        ('no/net.pt2', dict(format='pt2'), 'does not exist'),
        ('net.pt2', dict(format='pt2', part='head'), 'model or backbone'),
        ('net.pt2', dict(format='pt2', samples=0), 'must be positive'),
        ('net.pt2', dict(format='pt2', tol=-1), 'over the tolerance -1'),
    ):
        with pytest.raises(UserError, match=sentence):
            export(cfg, checkpoint, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_files_of_others_stay(digits, tmp_path):
    needs(*BACKENDS['openvino'].PACKAGES)
    cfg, checkpoint = digits
    precious = tmp_path / 'net.bin'
    precious.write_bytes(checkpoint.read_bytes())
    for source, sentence in ((precious, 'which this command reads'),
                             (checkpoint, 'mmvanilla did not write it')):
        with pytest.raises(UserError, match=sentence):
            export(cfg, source, tmp_path / 'net.xml', 'openvino')
    assert precious.read_bytes() == checkpoint.read_bytes()
    export(
        cfg,
        checkpoint,
        tmp_path / 'net.xml',
        'openvino',
        samples=8,
        force=True)
    assert precious.read_bytes() != checkpoint.read_bytes()
    (tmp_path / 'other.bin').mkdir()
    with pytest.raises(UserError, match='is a folder'):
        export(cfg, checkpoint, tmp_path / 'other.xml', 'openvino')
    assert not (tmp_path / 'other.xml').exists()


def test_unfinished_deep_training_is_refused(digits, tmp_path):
    cfg, checkpoint = digits
    content = read_checkpoint(checkpoint)
    for key, value in content['state_dict'].items():
        if key.endswith('.lam'):
            value.fill_(0.5)
    unfinished = tmp_path / 'unfinished.pth'
    torch.save(dict(state_dict=content['state_dict']), unfinished)
    with pytest.raises(UserError, match='lambda is 0.5'):
        export(cfg, unfinished, tmp_path / 'net.pt2', 'pt2')
    assert not (tmp_path / 'net.pt2').exists()


def test_models_without_a_head_export_their_backbone():
    detector = torch.nn.Module()
    detector.backbone = vanillanet(NARROW_ARCHS['5'], out_indices=(0, 2))
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match='--part backbone'):
        make_network(detector, 'model', x)
    network = make_network(detector, 'backbone', x)
    assert network.output_names == ('feature_0', 'feature_1')
    with pytest.raises(UserError, match='has no backbone'):
        make_network(torch.nn.Module(), 'model', x)


def test_metadata_describes_the_input():
    processor = torch.nn.Module()
    processor.mean = torch.tensor([1., 2, 3]).view(3, 1, 1)
    processor.std = torch.ones(3, 1, 1)
    processor.to_rgb = True
    model = torch.nn.Module()
    model.data_preprocessor = processor
    found = describe(
        Config(), model, dict(dataset_meta=dict(classes=['cat'])),
        torch.zeros(1, 3, 5, 7), 'model', 'fp32')
    assert found['channel_order'] == 'RGB'
    assert found['mean'] == [1, 2, 3]
    assert found['input_size'] == [5, 7]
    assert found['labels'] == ['cat']
