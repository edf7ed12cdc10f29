# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import multiprocessing
import os
import re
import time
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
    one_sentence,
    random_authors_weights,
    same,
)
from mmengine import registry
from mmengine.runner import CheckpointLoader
from mmpretrain.apis import ImageClassificationInferencer, list_models
from mmpretrain.registry import MODELS
from ranks import load_official
from tiny import free_port

from mmvanilla.checkpoints import PUBLISHED, hub
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

NAMES = {f'vanillanet-{name}_8xb128_in1k' for name in VanillaNet.arch_settings}


def fetch(name: str) -> dict:
    return CheckpointLoader.load_checkpoint(name, logger='silent')


def test_unknown_name_lists_the_right_ones():
    for name in ('vanillanet_4', '', 'some/file.pth'):
        with pytest.raises(UserError, match=f'//{name} is not known') as e:
            fetch(f'vanillanet://{name}')
        assert all(published in one_sentence(e) for published in PUBLISHED)


def test_other_formats_are_told(tmp_path):
    path = tmp_path / 'a.pth'
    ours = build_classifier(load('plain')).state_dict()
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    for saved, found in [
        (dict(state_dict=ours), 'holds state_dict.*needs no converting'),
        (dict(), 'holds no weights'),
        (dict(model=3), 'holds no weights'),
        (dict(model=resnet), 'conv1.weight'),
        (dict(model={**resnet, 'a': 1}), 'a is of type int'),
        (dict(model={**resnet, 1: torch.ones(1)}), '1 is of type Tensor'),
    ]:
        torch.save(saved, path)
        with pytest.raises(UserError) as e:
            fetch(f'vanillanet://{path}')
        assert re.search(found, one_sentence(e)) and str(path) in str(e.value)


class Slow(SimpleHTTPRequestHandler):
    """Answer after a while, so that others have to wait."""
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
    weights = dict(model=random_authors_weights(dims, deploy=True))
    for name in ('vanillanet_5', 'vanillanet_6'):
        torch.save(weights, folder / f'{name}.pth')
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
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tiny'])
    port = free_port()
    ranks = [context.Process(
        target=load_official, args=(rank, port, hub.URL, str(tmp_path)))
        for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert Slow.requested == ['/vanillanet_5.pth', '/vanillanet_6.pth']
    results = [(tmp_path / f'{i}.json').read_text() for i in (0, 1)]
    assert results[0] == results[1] and len(set(json.loads(results[0]))) == 1
    assert sorted(os.listdir(tmp_path / 'hub' / 'checkpoints')) == [
        'vanillanet_5.pth', 'vanillanet_6.pth']


def test_a_filled_cache_needs_no_network(tmp_path, served, monkeypatch):
    wanted = fetch('vanillanet://vanillanet_5')['state_dict']
    monkeypatch.setattr(hub, 'URL', 'http://127.0.0.1:9/')
    for rank in ('0', '1'):
        monkeypatch.setenv('SLURM_LOCALID', rank)
        assert same(fetch('vanillanet://vanillanet_5')['state_dict'], wanted)
    monkeypatch.setattr(hub, 'WAIT', 0)
    with pytest.raises(UserError, match='_6.pth did not appear'):
        fetch('vanillanet://vanillanet_6')


@pytest.mark.parametrize('broken', ['offline', 'missing', 'cut'])
def test_a_failed_download_leaves_nothing(tmp_path, served, monkeypatch,
                                          broken):
    file = served / 'vanillanet_5.pth'
    if broken == 'offline':
        monkeypatch.setattr(hub, 'URL', 'http://127.0.0.1:9/')
    elif broken == 'missing':
        file.unlink()
    else:  # the connection breaks
        file.write_bytes(file.read_bytes()[:-99])
    with pytest.raises(UserError) as e:
        fetch('vanillanet://vanillanet_5')
    wanted = tmp_path / 'hub' / 'checkpoints' / 'vanillanet_5.pth'
    assert one_sentence(e).endswith(
        f'put the file by hand at {wanted}, or train without it by '
        '--cfg-options load_from=None')
    assert f'cannot download {hub.URL}vanillanet_5.pth' in str(e.value)
    assert os.listdir(wanted.parent) == []


def test_inference_by_name(tmp_path, monkeypatch):
    """``pretrained=True`` is the published file."""
    # Beside mmpretrain's own.
    assert set(list_models('vanillanet*')) == NAMES
    assert list_models('resnet50_8xb32_in1k')
    weights = random_authors_weights(VanillaNet.arch_settings['5']['dims'])
    weights['cls2.0.weight'] = torch.zeros(1000, 1000, 1, 1)
    weights['cls2.0.bias'] = 9 * torch.eye(1000)[207]
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(dict(model=weights),
               tmp_path / 'hub' / 'checkpoints' / 'vanillanet_5.pth')
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    inferencer = ImageClassificationInferencer(
        'vanillanet-5_8xb128_in1k', pretrained=True)
    found = inferencer(image)[0]
    assert found['pred_label'] == 207
    assert found['pred_class'] == 'golden retriever'


def test_types_in_the_scope_of_an_inherited_config():
    """mmengine sets it in what ``_base_ = 'mmvanilla::...'`` brings."""
    backbone = registry.MODELS.build(
        dict(type='VanillaNet', arch=dict(dims=[4, 8], strides=[2]),
             _scope_='mmvanilla'))
    hook = registry.HOOKS.build(
        dict(type='ClassNumCheckHook', _scope_='mmvanilla'))
    assert type(backbone) is VanillaNet
    assert type(hook).__module__.startswith('mmpretrain')
