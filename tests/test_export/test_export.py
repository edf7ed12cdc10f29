# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a checkpoint to a verified file."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from narrow import (
    NARROW_ARCHS,
    needs,
    one_weight,
    randomize,
    swapped,
    vanillanet,
)
from tiny import DIGITS, tiny_cfg

from mmvanilla.export import export, read_metadata
from mmvanilla.export.formats import FORMATS
from mmvanilla.export.network import describe, make_network
from mmvanilla.reparam import merge
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError


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


@pytest.fixture
def random(tmp_path):
    """A narrow classifier of digits and a checkpoint of random weights."""
    cfg = tiny_cfg(tmp_path)
    model = randomize(build_model(cfg))
    folder = tmp_path / 'weights'
    folder.mkdir()
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=dict(classes=tuple('0123456789')))),
        folder / 'random.pth')
    out = tmp_path / 'out'
    out.mkdir()
    return cfg, folder / 'random.pth', out


@pytest.mark.parametrize('format', ['onnx', 'openvino', 'pt2'])
def test_a_classifier_in_fp32(random, format):
    needs(*FORMATS[format].packages)
    cfg, checkpoint, folder = random
    out = folder / f'net{FORMATS[format].suffix}'
    report = export(
        cfg, checkpoint, out, format, dynamic_batch=True, dynamic_size=True)
    found = report.verification
    assert found.samples.whole and not found.samples.random
    assert found.max_rel <= 1e-5
    assert found.counts['top-1 agreement'] == [32, 32]
    assert '32 real samples of 10 of 10 classes' in report.table()
    metadata = read_metadata(out)
    assert metadata['labels'] == list('0123456789')
    assert metadata['mean'] == pytest.approx([77.9])
    assert metadata['std'] == pytest.approx([95.9])
    assert metadata['input_size'] == [32, 32]
    assert metadata['input_shape'] == [-1, 1, -1, -1]
    assert metadata['channel_order'] == 'gray'
    assert len(list(folder.iterdir())) == (2 if format == 'openvino' else 1)


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_int8_keeps_the_accuracy(digits, format, tmp_path):
    """Also where training images are cropped to another size."""
    needs(*FORMATS[format].packages,
          *(['nncf'] if format == 'openvino' else []))
    cfg, checkpoint = digits
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='RandomResizedCrop', scale=48),
        dict(type='PackInputs')
    ]
    out = tmp_path / f'net{FORMATS[format].suffix}'
    report = export(
        cfg, checkpoint, out, format, 'int8', calibration_samples=64,
        samples=120, max_drop=5)
    before, after = report.verification.accuracy['accuracy/top1']
    assert before > 90 and after > 85
    assert '64 of 64 training images' in report.table()
    weights = out.with_suffix('.bin') if format == 'openvino' else out
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    assert weights.stat().st_size < 4 * parameters


@DATASETS.register_module(force=True)
class ImagesOfSizes(BaseDataset):
    """Noise; ``sizes`` has the height and width of each image."""

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, sizes, **kwargs):
        self.sizes = sizes
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        rng = torch.Generator().manual_seed(0)
        return [
            dict(
                img=torch.randint(0, 256, (size, size, 1), dtype=torch.uint8,
                                  generator=rng).numpy(),
                img_shape=(size, size), gt_label=0) for size in self.sizes
        ]


def test_images_of_several_sizes(random):
    needs(*FORMATS['onnx'].packages)
    cfg, checkpoint, folder = random
    for split, sizes in (('val', [32, 24, 48, 32]), ('train', [40, 32, 20])):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='ImagesOfSizes', sizes=sizes,
            pipeline=[dict(type='PackInputs')])
    report = export(
        cfg, checkpoint, folder / 'net.onnx', precision='int8', max_drop=100)
    assert report.metadata['input_size'] == [32, 32]
    assert len(report.verification.samples.batches) == 3
    table = report.table()
    assert "larger than the network's input, left out" in table
    assert '2 of 3 training images' in table
    cfg.train_dataloader.dataset.sizes = [40, 33]
    with pytest.raises(UserError, match='all 2 are larger.*32 x 32'):
        export(cfg, checkpoint, folder / 'two.onnx', precision='int8')
    cfg.train_dataloader = None
    with pytest.raises(UserError, match='no train_dataloader'):
        export(cfg, checkpoint, folder / 'two.onnx', precision='int8')
    assert [path.name for path in folder.iterdir()] == ['net.onnx']


@pytest.mark.parametrize('mutation, layer, untrained', [
    (swapped, 'head.classifier', False),
    (one_weight, 'backbone.stages.1.conv', True)])
def test_a_wrong_merge_is_not_written(random, mutation, layer, untrained,
                                      monkeypatch):
    cfg, checkpoint, out = random
    if untrained:
        outputs_are_constant(checkpoint)
    switch_to_deploy = merge.switch_to_deploy

    @torch.no_grad()
    def merge_wrongly(model):
        switch_to_deploy(model)
        mutation(model.get_submodule(layer))

    monkeypatch.setattr(merge, 'switch_to_deploy', merge_wrongly)
    with pytest.raises(UserError, match='comparing the exported file'):
        export(cfg, checkpoint, out / 'net.pt2', 'pt2')
    assert not list(out.iterdir())


def outputs_are_constant(checkpoint):
    content = torch.load(checkpoint)
    weights = content['state_dict']
    for key in weights:
        if key.startswith('head.') and key.endswith('conv2.weight'):
            weights[key].zero_()
    torch.save(content, checkpoint)


def test_an_untrained_network_is_exported(random):
    cfg, checkpoint, folder = random
    outputs_are_constant(checkpoint)
    report = export(cfg, checkpoint, folder / 'net.pt2', 'pt2')
    assert 'the outputs are the same for all samples' in report.table()
    assert (folder / 'net.pt2').is_file()


def test_refusals_leave_nothing(random):
    cfg, checkpoint, folder = random
    for out, options, sentence in (
        ('net.onnx', dict(format='pt2'), 'must end in .pt2'),
        ('no/net.pt2', dict(format='pt2'), 'does not exist'),
        ('net.pt2', dict(format='pt2', part='head'), 'model or backbone'),
        ('net.pt2', dict(format='pt2', samples=0), 'must be positive'),
        ('net.pt2', dict(format='pt2', tol=-1), 'over the tolerance -1'),
    ):
        with pytest.raises(UserError, match=sentence):
            export(cfg, checkpoint, folder / out, **options)
    content = torch.load(checkpoint)
    for key, value in content['state_dict'].items():
        if key.endswith('.lam'):
            value.fill_(0.5)
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match='lambda is 0.5'):
        export(cfg, checkpoint, folder / 'net.pt2', 'pt2')
    assert not list(folder.iterdir())


def test_existing_files_stay(random):
    """Both files of OpenVINO, without --force."""
    needs(*FORMATS['openvino'].packages)
    cfg, checkpoint, folder = random
    precious = folder / 'net.bin'
    precious.write_bytes(checkpoint.read_bytes())
    for source, sentence in ((precious, 'this command reads it'),
                             (checkpoint, 'net.bin: it exists')):
        with pytest.raises(UserError, match=sentence):
            export(cfg, source, folder / 'net.xml', 'openvino')
    assert precious.read_bytes() == checkpoint.read_bytes()
    export(cfg, checkpoint, folder / 'net.xml', 'openvino', force=True)
    assert precious.read_bytes() != checkpoint.read_bytes()


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
        torch.zeros(1, 3, 5, 7), 'model')
    assert found['channel_order'] == 'RGB'
    assert found['mean'] == [1, 2, 3]
    assert found['input_size'] == [5, 7]
    assert found['labels'] == ['cat']
