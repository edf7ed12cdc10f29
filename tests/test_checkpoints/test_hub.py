# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import re
import runpy
import sys
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import mmengine
import numpy as np
import pytest
import torch
from golden import (
    DATA,
    WIDTHS,
    build_classifier,
    load,
    model_cfg,
    one_sentence,
    random_authors_weights,
    relative_l2,
    same,
)
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.apis import ImageClassificationInferencer, get_model
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from PIL import Image

from mmvanilla.checkpoints import (
    PUBLISHED,
    describe,
    from_authors,
    to_authors,
)
from mmvanilla.utils.errors import UserError

ROOT = DATA.parents[1]


def different(state_dict: dict) -> dict:
    return {k: v + 1 for k, v in state_dict.items()}


@pytest.mark.parametrize('deploy', [False, True])
def test_scheme_takes_a_local_file(tmp_path, deploy):
    golden = load('plain')
    theirs = (golden['deploy'] if deploy else golden)['state_dict']
    path = tmp_path / 'any.pth'
    # The averaged weights are the ones to use.
    torch.save(
        dict(model=different(theirs), model_ema=theirs, epoch=299,
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
        loaded = CheckpointLoader.load_checkpoint(f'vanillanet://{path}')
        assert same(loaded['state_dict'], from_authors(theirs))


def test_scheme_initialises_a_backbone(tmp_path):
    golden = load('act4_deep')
    path = tmp_path / 'a.pth'
    torch.save(dict(model=golden['state_dict']), path)
    backbone: BaseModule = MODELS.build(
        dict(
            model_cfg(golden)['backbone'],
            init_cfg=dict(
                type='Pretrained',
                checkpoint=f'vanillanet://{path}',
                prefix='backbone.')))
    backbone.init_weights()
    wanted = build_classifier(golden).backbone.state_dict()
    assert same(backbone.state_dict(), wanted)


def test_scheme_downloads_once_into_the_hub_cache(tmp_path, monkeypatch,
                                                  capsys):
    dims = [128 * d for d in WIDTHS['5']]
    served = tmp_path / 'served'
    served.mkdir()
    torch.save(
        dict(model=random_authors_weights(dims, deploy=True)),
        served / 'vanillanet_5.pth')
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL', served.as_uri() + '/')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    loaded = CheckpointLoader.load_checkpoint('vanillanet://vanillanet_5')
    assert describe(loaded['state_dict'])['backbone']['arch'] == '5'
    assert '100' in capsys.readouterr().err  # the progress bar
    cache = tmp_path / 'home' / 'hub' / 'checkpoints'
    assert os.listdir(cache) == ['vanillanet_5.pth']
    (served / 'vanillanet_5.pth').unlink()
    CheckpointLoader.load_checkpoint('vanillanet://vanillanet_5')


def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    whole = (DATA / 'plain.pt').read_bytes()

    class CutTheLine(BaseHTTPRequestHandler):

        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[:len(whole) // 2])

    server = HTTPServer(('127.0.0.1', 0), CutTheLine)
    thread = Thread(target=server.handle_request)
    thread.start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL',
                        f'http://127.0.0.1:{server.server_port}/')
    with pytest.raises(UserError, match='bytes arrived.*put the file by'):
        CheckpointLoader.load_checkpoint('vanillanet://vanillanet_5')
    thread.join()
    server.server_close()
    assert os.listdir(tmp_path / 'hub' / 'checkpoints') == []


def test_offline_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    # Nobody listens there.
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL', 'http://127.0.0.1:9/')
    with pytest.raises(UserError) as e:
        CheckpointLoader.load_checkpoint('vanillanet://vanillanet_13_x1_5')
    wanted = tmp_path / 'hub' / 'checkpoints' / 'vanillanet_13_x1_5.pth'
    assert one_sentence(e).endswith(f'put the file by hand at {wanted}')
    assert '127.0.0.1:9/vanillanet_13_x1_5.pth' in str(e.value)


@pytest.mark.parametrize('name', ['vanillanet_4', '6', '', 'some/file.pth'])
def test_unknown_name_lists_the_right_ones(name):
    with pytest.raises(UserError) as e:
        CheckpointLoader.load_checkpoint(f'vanillanet://{name}')
    text = one_sentence(e)
    assert f'vanillanet://{name} is not known' in text
    assert all(published in text for published in PUBLISHED)


def test_other_formats_are_told(tmp_path):
    path = tmp_path / 'a.pth'
    ours = build_classifier(load('plain')).state_dict()
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    for saved, found in [
        (dict(state_dict=ours), 'holds state_dict.*needs no converting'),
        (dict(net=1, epoch=2), 'holds net, epoch'),
        (dict(), 'holds nothing'),
        (dict(model=resnet), 'conv1.weight'),
        (dict(model=3), 'holds model'),
    ]:
        torch.save(saved, path)
        with pytest.raises(UserError) as e:
            CheckpointLoader.load_checkpoint(f'vanillanet://{path}')
        assert re.search(found, one_sentence(e)) and str(path) in str(e.value)


@pytest.mark.slow
def test_the_two_commands_of_the_readme(tmp_path, monkeypatch):
    """The authors' VanillaNet-6, in train form and merged."""
    (tmp_path / 'data/imagenet/meta').mkdir(parents=True)
    (tmp_path / 'data/imagenet/val').mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        image = rng.integers(0, 256, (260, 300, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f'data/imagenet/val/{i}.png')
    torch.manual_seed(0)
    model = get_model('vanillanet-6_8xb128_in1k')
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.001, 0.01)
    # Labels that the network gets right for two of the four.
    data = [
        np.array(Image.open(tmp_path / f'data/imagenet/val/{i}.png'))
        for i in range(4)
    ]
    labels = [
        r['pred_label'] for r in ImageClassificationInferencer(model)(data)
    ]
    labels[:2] = [(label + 1) % 1000 for label in labels[:2]]
    (tmp_path / 'data/imagenet/meta/val.txt').write_text('\n'.join(
        f'{i}.png {label}' for i, label in enumerate(labels)))
    torch.save(
        dict(model_ema=to_authors(model.state_dict())),
        tmp_path / 'vanillanet_6.pth')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL',
                        tmp_path.as_uri() + '/')
    results = []
    for args in ([], ['--deploy']):
        monkeypatch.setattr(sys, 'argv', [
            'test.py',
            str(ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py'),
            'vanillanet://vanillanet_6', '--out', 'out.json', '--out-item',
            'metrics', '--cfg-options', 'test_dataloader.num_workers=0', *args
        ])
        runpy.run_path(str(ROOT / 'tools' / 'test.py'), run_name='__main__')
        results.append(mmengine.load('out.json'))
    assert results[0] == results[1]
    assert results[0]['accuracy/top1'] == 50
