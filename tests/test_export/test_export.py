# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""From a checkpoint to a verified file."""
import pytest
import torch
from mmengine.config import Config
from mmpretrain.datasets import BaseDataset
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import DATASETS
from narrow import TINY, needs, one_weight, randomize, swapped, vanillanet
from tiny import tiny_cfg
from torch import nn

from mmvanilla.export import export, read_metadata
from mmvanilla.export.exported import prepare
from mmvanilla.export.formats import FORMATS
from mmvanilla.export.metadata import describe
from mmvanilla.export.network import make_network
from mmvanilla.reparam import merge
from mmvanilla.reparam.samples import find_samples
from mmvanilla.utils.configs import build_model
from mmvanilla.utils.errors import UserError


@pytest.fixture
def random(tmp_path):
    """A narrow classifier of digits and a checkpoint of random weights."""
    cfg, out = tiny_cfg(tmp_path), tmp_path / 'out'
    out.mkdir()
    save(randomize(build_model(cfg)), tmp_path / 'random.pth')
    return cfg, tmp_path / 'random.pth', out


def save(model, path):
    meta = dict(dataset_meta=dict(classes=tuple('0123456789')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


@pytest.mark.parametrize('format', ['onnx', 'openvino', 'pt2'])
def test_a_classifier_in_fp32(random, format):
    needs(*FORMATS[format].packages)
    cfg, checkpoint, folder = random
    out = folder / f'net{FORMATS[format].suffix}'
    report = export(
        cfg, checkpoint, out, format, dynamic_batch=True, dynamic_size=True)
    found = report.verification
    assert found.max_rel <= 1e-5
    assert found.counts['top-1 agreement'] == [32, 32]
    assert '32 real samples of 10 of 10 classes' in report.table()
    assert read_metadata(out).items() >= dict(
        labels=list('0123456789'), input_size=[32, 32], channel_order='gray',
        input_shape=[-1, 1, -1, -1], part='model', precision='fp32').items()
    assert len(list(folder.iterdir())) == (2 if format == 'openvino' else 1)


@torch.no_grad()
def fit_classifier(cfg):
    """A network of random weights whose last layer fits the digits."""
    model = randomize(build_model(cfg))
    images, samples = zip(*(prepare(model, batch) for batch in find_samples(
        cfg, 640, 'train').batches))
    x = model.backbone(torch.cat(images))[-1].mean((2, 3))
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    labels = torch.cat([sample.gt_label for sample in samples])
    y = nn.functional.one_hot(labels, 10).double()
    # With a penalty, which keeps the weights small: rounding counts little.
    penalty = len(x) * x.var(0).mean() * torch.eye(x.shape[1])
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y).T.float()
    model.head.classifier.weight.copy_(weight[:, :-1, None, None])
    model.head.classifier.bias.copy_(weight[:, -1])
    return model


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_int8_keeps_the_accuracy(random, format):
    """Also where training images are cropped to another size."""
    needs(*FORMATS[format].packages, 'nncf')
    cfg, checkpoint, folder = random
    cfg.model.backbone.update(
        arch=dict(dims=[64, 192], strides=[2]), deploy=True)
    cfg.model.head.update(in_channels=192, deploy=True)
    cfg.train_dataloader.dataset.indices = 640
    model = fit_classifier(cfg)
    save(model, checkpoint)
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='RandomResizedCrop', scale=48), dict(type='PackInputs')]
    cfg.val_dataloader.dataset.indices = 120
    out = folder / f'net{FORMATS[format].suffix}'
    report = export(
        cfg, checkpoint, out, format, 'int8', calibration_samples=64,
        max_drop=5)
    before, after = report.verification.accuracy['accuracy/top1']
    assert before > 90 and after > 85
    assert '64 of 64 training images' in report.table()
    weights = out.with_suffix('.bin') if format == 'openvino' else out
    parameters = sum(p.numel() for p in model.parameters())
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
        return [dict(
            img=torch.randint(0, 256, (size, size, 1), dtype=torch.uint8,
                              generator=rng).numpy(),
            img_shape=(size, size), gt_label=0) for size in self.sizes]


def test_images_of_several_sizes(random):
    needs(*FORMATS['onnx'].packages)
    cfg, checkpoint, folder = random
    for split, sizes in (('val', [32, 24, 48, 32]), ('train', [40, 32, 20])):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='ImagesOfSizes', sizes=sizes,
            pipeline=[dict(type='PackInputs')])
    cfg.test_dataloader = cfg.val_dataloader
    report = export(
        cfg, checkpoint, folder / 'net.onnx', precision='int8', max_drop=100)
    assert report.metadata['input_size'] == [32, 32]
    assert len(report.verification.samples.batches) == 2
    table = report.table()
    assert "not of the size of the network's input, left out" in table
    assert '1 of 3 training images' in table
    cfg.train_dataloader.dataset.sizes = [40, 24]
    with pytest.raises(UserError, match='none of 2 has the size'):
        export(cfg, checkpoint, folder / 'two.onnx', precision='int8')
    assert [path.name for path in folder.iterdir()] == ['net.onnx']


def test_pixels_that_are_padded(random):
    """By the network, with the rounded mean of the file."""
    needs(*FORMATS['onnx'].packages)
    cfg, checkpoint, folder = random
    cfg.model.data_preprocessor.pad_size_divisor = 24
    report = export(
        cfg, checkpoint, folder / 'net.onnx', preprocess=True, samples=8)
    assert report.metadata['input_shape'] == [1, 48, 48, 1]
    assert report.verification.max_rel < 1e-5


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
    content['state_dict']['head.classifier.conv2.weight'].zero_()
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
        ('net.pt2', dict(format='pt2', tol=-1), 'over the tolerance -1')):
        with pytest.raises(UserError, match=sentence):
            export(cfg, checkpoint, folder / out, **options)
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
    assert [path.name for path in folder.iterdir()] == ['net.bin']
    assert precious.read_bytes() == checkpoint.read_bytes()
    (folder / 'net.pt2').write_bytes(b'old')
    export(cfg, checkpoint, folder / 'net.pt2', 'pt2', force=True)
    assert (folder / 'net.pt2').read_bytes() != b'old'


def test_models_without_a_head_export_their_backbone():
    detector = nn.Module()
    detector.backbone = vanillanet(TINY, out_indices=(0, 2))
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match='--part backbone'):
        make_network(detector, 'model', x)
    network = make_network(detector, 'backbone', x)
    assert network.output_names == ('feature_0', 'feature_1')
    with pytest.raises(UserError, match='has no backbone'):
        make_network(nn.Module(), 'model', x)


def test_metadata_describes_the_input():
    model = nn.Module()
    model.data_preprocessor = ClsDataPreprocessor(
        mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True)
    assert describe(Config(), model, dict(CLASSES=['cat']),
                    torch.zeros(1, 3, 5, 7), 'logits').items() >= dict(
        channel_order='RGB', mean=[1, 2, 3], std=[1, 1, 1],
        input_size=[5, 7], labels=['cat']).items()
