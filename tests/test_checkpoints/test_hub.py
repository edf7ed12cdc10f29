# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import multiprocessing
import os
import re
import time
from argparse import Namespace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from golden import (
    WIDTHS,
    build_classifier,
    load,
    model_cfg,
    one_sentence,
    random_authors_weights,
    relative_l2,
    same,
)
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.apis import (
    ImageClassificationInferencer,
    ModelHub,
    get_model,
    inference_model,
    list_models,
)
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from ranks import load_official
from tiny import free_port
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.checkpoints import PUBLISHED, from_authors, hub
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

NAMES = {f'vanillanet-{name}_8xb128_in1k' for name in VanillaNet.arch_settings}


def fetch(name: str) -> dict:
    return CheckpointLoader.load_checkpoint(name, logger='silent')


@pytest.mark.parametrize('deploy', [False, True])
def test_scheme_reads_a_local_file(tmp_path, deploy):
    golden = load('plain')
    theirs = (golden['deploy'] if deploy else golden)['state_dict']
    path = tmp_path / 'any.pth'
    other = {k: v + 1 for k, v in theirs.items()}
    # The averaged weights are the ones to use.
    torch.save(
        dict(model=other, model_ema=theirs, epoch=299,
             args=Namespace(model='vanillanet_6')), path)
    cfg = model_cfg(golden, deploy)
    model = ImageClassifier(cfg['backbone'], head=cfg['head']).eval()
    load_checkpoint(model, f'vanillanet://{path}', strict=True)
    wanted = golden['deploy'] if deploy else golden['eval'][1.0]
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, wanted['logits']) < 1e-5

    # Without them, and without any packing.
    for saved in (dict(model=theirs), theirs):
        torch.save(saved, path)
        assert same(
            fetch(f'vanillanet://{path}')['state_dict'], from_authors(theirs))


@pytest.mark.parametrize('name', ['vanillanet_4', '6', '', 'some/file.pth'])
def test_unknown_name_lists_the_right_ones(name):
    with pytest.raises(UserError) as e:
        fetch(f'vanillanet://{name}')
    text = one_sentence(e)
    assert f'vanillanet://{name} is not known' in text
    assert all(published in text for published in PUBLISHED)


def test_other_formats_are_told(tmp_path):
    path = tmp_path / 'a.pth'
    ours = build_classifier(load('plain')).state_dict()
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    for saved, found in [
        (dict(state_dict=ours), 'holds state_dict.*needs no converting'),
        (dict(net=1, epoch=2), 'no state dict with tensors'),
        (dict(), 'no state dict with tensors'),
        (dict(model=3), 'no state dict with tensors'),
        (dict(model=resnet), 'conv1.weight'),
        (dict(model={**resnet, 'a': 1}), "'a' .* of type int"),
        (dict(model={**resnet, 1: resnet['conv1.weight']}), 'entry 1 '),
    ]:
        torch.save(saved, path)
        with pytest.raises(UserError) as e:
            fetch(f'vanillanet://{path}')
        assert re.search(found, one_sentence(e)) and str(path) in str(e.value)


# --------------------------------------------------------------- downloads


class Slow(SimpleHTTPRequestHandler):
    """Answer after half a second, so that others have to wait."""

    requested: list = []

    def do_GET(self):
        self.requested.append(self.path)
        time.sleep(0.5)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A folder whose files are those of the release."""
    folder = tmp_path / 'served'
    folder.mkdir()
    dims = [128 * d for d in WIDTHS['5']]
    for name in ('vanillanet_5', 'vanillanet_6'):
        torch.save(
            dict(model=random_authors_weights(dims, deploy=True)),
            folder / f'{name}.pth')
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Slow, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, 'URL', f'http://127.0.0.1:{server.server_port}/')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for name in hub.LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    Slow.requested.clear()
    yield folder
    server.shutdown()
    server.server_close()


def test_two_processes_download_once(tmp_path, served):
    torch.save(
        torch.load(served / 'vanillanet_5.pth'), served / 'more.pth')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tiny'])
    port = free_port()
    ranks = [
        context.Process(
            target=load_official, args=(rank, port, hub.URL, str(tmp_path)))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert sorted(Slow.requested) == [
        '/more.pth', '/vanillanet_5.pth', '/vanillanet_6.pth']
    results = [
        json.loads((tmp_path / f'{i}.json').read_text()) for i in (0, 1)
    ]
    assert results[0] == results[1] and len(set(results[0])) == 1
    assert sorted(os.listdir(tmp_path / 'hub' / 'checkpoints')) == [
        'more.pth', 'vanillanet_5.pth', 'vanillanet_6.pth']


def test_a_filled_cache_needs_no_network(tmp_path, served, monkeypatch):
    wanted = fetch('vanillanet://vanillanet_5')['state_dict']
    monkeypatch.setattr(hub, 'URL', 'http://127.0.0.1:9/')
    for rank in ('0', '1'):
        monkeypatch.setenv('SLURM_LOCALID', rank)
        assert same(fetch('vanillanet://vanillanet_5')['state_dict'], wanted)
    monkeypatch.setattr(hub, 'WAIT', 0)
    with pytest.raises(UserError, match='_6.pth did not appear') as e:
        fetch('vanillanet://vanillanet_6')
    one_sentence(e)


@pytest.mark.parametrize('broken', ['offline', 'missing', 'page', 'cut'])
def test_a_failed_download_leaves_nothing(tmp_path, served, monkeypatch,
                                          broken):
    file = served / 'vanillanet_5.pth'
    if broken == 'offline':
        monkeypatch.setattr(hub, 'URL', 'http://127.0.0.1:9/')
    elif broken == 'missing':
        file.unlink()
    elif broken == 'page':
        file.write_text('<html>')
    else:  # the connection breaks
        whole = file.read_bytes()
        file.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError) as e:
        fetch('vanillanet://vanillanet_5')
    wanted = tmp_path / 'hub' / 'checkpoints' / 'vanillanet_5.pth'
    assert one_sentence(e).endswith(f'put the file by hand at {wanted}')
    assert f'cannot download {hub.URL}vanillanet_5.pth' in str(e.value)
    assert os.listdir(wanted.parent) == []


# ----------------------------------------------------------- the model index


def plain() -> dict:
    """What turns a variant of the zoo into the golden 'plain' network."""
    cfg = model_cfg(load('plain'))
    return dict(
        backbone=dict(arch=dict(cfg['backbone']['arch'], _delete_=True)),
        head=dict(num_classes=10, in_channels=cfg['head']['in_channels']))


def test_models_are_listed():
    assert set(list_models('vanillanet*')) == NAMES
    # Beside mmpretrain's own.
    assert 'resnet50_8xb32_in1k' in list_models('resnet50')
    assert NAMES <= set(list_models(task='Image Classification'))


@pytest.mark.parametrize('name', sorted(NAMES))
def test_metafile(name):
    info = ModelHub.get(name)
    arch = info.config.model.backbone.arch
    assert name == f'vanillanet-{arch}_8xb128_in1k'
    scheme, _, published = info.weights.partition('://')
    assert scheme == 'vanillanet' and PUBLISHED[published]['arch'] == arch
    found = info.metadata.data
    for deploy, form in ((True, ''), (False, ' (train form)')):
        cfg = Config(dict(model=info.config.model.to_dict()))
        cfg.model.pop('data_preprocessor', None)
        cfg.model.backbone.deploy = cfg.model.head.deploy = deploy
        with torch.device('meta'):
            model = MODELS.build(cfg.model).eval()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 224, 224))
        assert found['Parameters' + form] == sum(
            p.numel() for p in model.parameters())
        assert found['FLOPs' + form] == counter.get_total_flops() // 2


def test_get_model_downloads(served):
    """``pretrained=True`` is the published file."""
    torch.save(
        dict(model=load('plain')['state_dict']), served / 'vanillanet_6.pth')
    golden = load('plain')
    model = get_model('vanillanet-6_8xb128_in1k', pretrained=True, **plain())
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, golden['eval'][1.0]['logits']) < 1e-5


def test_inference_by_name(tmp_path):
    dims = VanillaNet.arch_settings['5']['dims']
    weights = random_authors_weights(dims, deploy=False)
    weights['cls2.0.weight'] = torch.zeros(1000, 1000, 1, 1)
    weights['cls2.0.bias'] = torch.zeros(1000)
    weights['cls2.0.bias'][207] = 9
    torch.save(dict(model=weights), tmp_path / 'a.pth')
    pretrained = f'vanillanet://{tmp_path / "a.pth"}'
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)

    name = 'vanillanet-5_8xb128_in1k'
    inferencer = ImageClassificationInferencer(name, pretrained=pretrained)
    for found in (inferencer(image)[0],
                  inference_model(name, image, pretrained=pretrained)):
        assert found['pred_scores'].shape == (1000, )
        assert found['pred_label'] == 207
        assert found['pred_class'] == 'golden retriever'
