# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import hashlib
import os
from urllib.request import urlopen

import mmengine
import pytest
import torch
from golden import build_classifier, load, one_sentence, same
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import MODELS

from mmvanilla.checkpoints import (
    check_state_dict,
    load_checkpoint,
    load_weights,
    local_path,
)
from mmvanilla.checkpoints.download import cache_path
from mmvanilla.utils.errors import UserError


@pytest.fixture
def model():
    return build_classifier(load('plain'))


def test_load_weights(tmp_path, model):
    path = str(tmp_path / 'a.pth')
    wanted = model.state_dict()
    without = {k: v for k, v in wanted.items()
               if not k.endswith(('.lam', '.num_batches_tracked'))}
    wrapped = {f'module.{k}': v for k, v in wanted.items()}
    for state_dict in (wanted, without, wrapped):
        for saved, meta in [(dict(state_dict=state_dict, meta=dict(a=1)),
                             dict(a=1)), (dict(state_dict), {})]:
            torch.save(saved, path)
            other = build_classifier(load('plain'))
            for value in other.state_dict().values():
                value.zero_()
            assert load_weights(other, path) == meta
            assert all(
                torch.equal(v, wanted[k])
                for k, v in other.state_dict().items() if k in without)


def test_a_train_form_loads_into_a_deployed_network(tmp_path):
    golden = load('plain')
    path = tmp_path / 'a.pth'
    torch.save(golden['state_dict'], path)
    deployed = build_classifier(golden, deploy=True)
    for value in deployed.state_dict().values():
        value.zero_()
    load_weights(deployed, f'vanillanet://{path}')
    torch.testing.assert_close(
        deployed(golden['input']), golden['deploy']['logits'])


def test_misfits_are_named(tmp_path, model):
    state_dict = model.state_dict()
    state_dict['head.classifier.conv1.weight'] = torch.ones(3, 8, 1, 1)
    del state_dict['backbone.stem.act.conv.weight']
    state_dict['neck.weight'] = torch.ones(1)
    torch.save(state_dict, tmp_path / 'a.pth')
    with pytest.raises(UserError) as e:
        load_weights(model, str(tmp_path / 'a.pth'))
    text = one_sentence(e)
    assert f'{tmp_path}/a.pth does not fit the config: ' in text
    assert ('head.classifier.conv1.weight has shape (3, 8, 1, 1) for '
            in text)
    assert 'backbone.stem.act.conv.weight is missing' in text
    assert 'neck.weight is not in the model' in text
    # A later form, which an earlier one cannot take.
    torch.save(build_classifier(load('plain'), deploy=True).state_dict(),
               tmp_path / 'b.pth')
    with pytest.raises(UserError, match='does not fit the config'):
        load_weights(model, str(tmp_path / 'b.pth'))


def test_tensors_in_memory_are_checked_too(model):
    for value, problem in [
        (torch.ones(1, device='meta'), 'not a dense tensor'),
        (torch.ones(2, 2).to_sparse(), 'not a dense tensor'),
        (torch.ones(1, dtype=torch.complex64), 'not a dense tensor'),
        (torch.quantize_per_tensor(torch.ones(1), 1, 0, torch.qint8),
         'not a dense tensor'),
        (torch.tensor(float('nan')), 'not finite'),
    ]:
        with pytest.raises(UserError, match=f'x is refused: a.w .*{problem}'):
            check_state_dict({'a.w': value}, 'x')
    with pytest.raises(UserError, match='has the key') as e:
        check_state_dict({'a\nb\ud800': torch.ones(1)}, 'x')
    one_sentence(e)
    # Where nothing is attended to, and what an expanded tensor repeats.
    check_state_dict(
        dict(attn_mask=torch.tensor(float('-inf')),
             w=torch.ones(1).expand(1 << 20, 1 << 20)), 'x')


def test_an_official_file_as_a_path_names_the_scheme(tmp_path, model):
    path = tmp_path / 'vanillanet_6.pth'
    torch.save(dict(model=load('plain')['state_dict'], epoch=299), path)
    with pytest.raises(UserError, match=f'give it as vanillanet://{path}'):
        load_weights(model, str(path))


def test_names_of_mmengine_s_zoos(tmp_path, monkeypatch):
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    torch.save(resnet, tmp_path / 'resnet.pth')
    mmengine.dump(dict(ours='resnet.pth'), tmp_path / 'open_mmlab.json')
    loaded = CheckpointLoader.load_checkpoint('openmmlab://ours')
    assert same(loaded, resnet)
    for name in ('openmmlab://none', 'torchvision://none', 'mmcls://none'):
        with pytest.raises(UserError, match=f'{name} is not known'):
            load_checkpoint(name)
    for name in ('pavi://a/b.pth', 's3://a/b.pth'):
        with pytest.raises(UserError, match=f'cannot load {name}'):
            load_checkpoint(name)


def test_nothing_is_downloaded_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'a.pth').write_bytes(b'1' * 100)
    monkeypatch.setattr('mmvanilla.checkpoints.hub.URL',
                        tmp_path.as_uri() + '/')
    os.rename(tmp_path / 'a.pth', tmp_path / 'vanillanet_5.pth')
    monkeypatch.setattr('shutil.disk_usage',
                        lambda _: type('Usage', (), dict(free=99)))
    with pytest.raises(UserError, match='needs 0 MB and .* has 0 MB left'):
        local_path('vanillanet://vanillanet_5')
    assert os.listdir(tmp_path / 'hub' / 'checkpoints') == []


def test_files_of_one_name_at_two_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr('mmvanilla.checkpoints.download.urlopen', _open_folder)
    urls = {}
    for value in (1., 2.):
        folder = tmp_path / f'{value:g}'
        folder.mkdir()
        torch.save(dict(weight=torch.tensor(value)), folder / 'model.pth')
        urls[value] = f'http://{folder}/model.pth'
    for _ in range(2):  # downloaded, and from the cache
        for value, url in urls.items():
            assert load_checkpoint(url)['weight'] == value
        monkeypatch.setattr('mmvanilla.checkpoints.download.urlopen', None)


@pytest.mark.parametrize('is_right', [True, False])
def test_what_torch_downloaded_is_used_if_its_digest_fits(
        is_right, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(dict(weight=torch.tensor(1.)), cache / 'model')
    digest = hashlib.sha256((cache / 'model').read_bytes()).hexdigest()
    name = f'resnet-{digest[:8] if is_right else "20210831"}.pth'
    (cache / 'model').rename(cache / name)
    path = cache_path(f'https://example.org/{name}')
    assert (path == cache / name) == is_right
    assert path.parent.parent == (tmp_path / 'hub' if is_right else cache)


def _open_folder(request, timeout):
    return urlopen(request.full_url.replace('http://', 'file://'))
