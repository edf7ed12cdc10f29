# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import pickle
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import mmengine
import numpy as np
import pytest
import torch
from golden import (
    DATA,
    build_classifier,
    load,
    model_cfg,
    random_authors_weights,
    relative_l2,
)
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.apis import ImageClassificationInferencer, get_model
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from PIL import Image

from mmvanilla.checkpoints import (
    PUBLISHED,
    convert,
    describe,
    from_authors,
    read_checkpoint,
    to_authors,
)
from mmvanilla.models import VanillaNet
from mmvanilla.utils.errors import UserError

ROOT = DATA.parents[1]
GOLDEN = ['plain', 'act4_deep', 'ada_pool']


class RunsACommand:
    """A pickle of it runs a shell command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command, )


class TakesAnAttribute:
    """A pickle of it reaches for the globals of a module."""

    def __reduce__(self):
        return getattr, (HistoryBuffer.update, '__globals__')


def one_sentence(error) -> str:
    text = str(error.value)
    assert '\n' not in text and len(text) < 600
    return text


def same(a: dict, b: dict) -> bool:
    """Whether two state dicts are bit-identical, the order included."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------ safe reading


def test_read_what_mmengine_saves(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    saved = dict(
        state_dict=OrderedDict(weight=torch.ones(2)),
        meta=dict(epoch=3, dataset_meta=dict(classes=('a', 'b'))),
        message_hub=dict(
            log_scalars=OrderedDict(loss=history),
            runtime_info=dict(score=np.float64(0.5), ids=np.arange(3))),
        optimizer=dict(state={0: dict(step=torch.tensor(1.))}))
    torch.save(saved, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['message_hub']['log_scalars']['loss'].mean() == 2
    assert read['message_hub']['runtime_info']['score'] == 0.5
    assert read['message_hub']['runtime_info']['ids'].tolist() == [0, 1, 2]
    assert read['meta'] == saved['meta']


def test_read_what_the_authors_saved(tmp_path):
    args = Namespace(model='vanillanet_6', lr=4.8e-3, output_dir='out')
    torch.save(
        dict(model={'a': torch.ones(1)}, epoch=299, scaler=dict(scale=2.),
             args=args), tmp_path / 'a.pth')
    assert read_checkpoint(str(tmp_path / 'a.pth'))['args'] == args


@pytest.mark.parametrize('save', [
    lambda obj, f: torch.save(dict(model={}, args=obj), f),
    lambda obj, f: f.write(pickle.dumps(obj, protocol=2)),
    lambda obj, f: f.write(pickle.dumps(obj, protocol=4)),
], ids=['torch', 'pickle2', 'pickle4'])
@pytest.mark.parametrize('read', [
    read_checkpoint,
    lambda path: CheckpointLoader.load_checkpoint(f'vanillanet://{path}'),
    lambda path: convert(path, path.with_name('out.pth')),
], ids=['read', 'scheme', 'convert'])
def test_malicious_pickle_does_not_run(tmp_path, save, read):
    path, proof = tmp_path / 'evil.pth', tmp_path / 'proof'
    with path.open('wb') as f:
        save(RunsACommand(f'touch {proof}'), f)
    with pytest.raises(UserError) as e:
        read(path)
    assert str(path) in one_sentence(e)
    assert not proof.exists()
    # The file is dangerous indeed, where it is read without care.
    torch.load(path, weights_only=False) if path.read_bytes(
    )[:2] == b'PK' else pickle.loads(path.read_bytes())
    assert proof.exists()


def test_malicious_pickle_is_named(tmp_path):
    torch.save(dict(a=RunsACommand('true')), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='refused: it would call .*system'):
        read_checkpoint(tmp_path / 'a.pth')


def test_getattr_takes_statistics_only(tmp_path):
    torch.save(dict(a=TakesAnAttribute()), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='is refused'):
        read_checkpoint(tmp_path / 'a.pth')


def test_torch_load_takes_mmengine_s_own(tmp_path):
    """As mmengine up to 0.10.7 calls it when it resumes or tests."""
    proof = tmp_path / 'proof'
    good = dict(loss=HistoryBuffer([1.0], [1]), score=np.float64(1))
    torch.save(good, tmp_path / 'good.pth')
    torch.save(RunsACommand(f'touch {proof}'), tmp_path / 'evil.pth')
    code = (
        'import pickle, torch, mmvanilla\n'
        'from mmvanilla.checkpoints import read_checkpoint\n'
        "read_checkpoint('good.pth')\n"
        "print(torch.load('good.pth')['loss'].mean())\n"
        "try: torch.load('evil.pth')\n"
        "except pickle.UnpicklingError: print('refused')\n")
    done = subprocess.run([sys.executable, '-c', code],
                          cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          capture_output=True,
                          text=True)
    assert done.stdout.split()[-2:] == ['1.0', 'refused'], done.stderr
    assert not proof.exists()


def test_unreadable_files(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(model=load('plain')['state_dict']), whole)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    text = tmp_path / 'text.pth'
    text.write_text('hello')
    empty = tmp_path / 'empty.pth'
    empty.touch()
    tensor = tmp_path / 'tensor.pth'
    torch.save(torch.ones(1), tensor)
    for path, found in [(cut, 'is not a checkpoint, or is cut short'),
                        (text, 'is not a checkpoint, or is cut short'),
                        (empty, 'is not a checkpoint, or is cut short'),
                        (tensor, 'holds a Tensor, not a dict'),
                        (tmp_path, 'there is no such file'),
                        (tmp_path / 'none.pth', 'there is no such file')]:
        for read in (read_checkpoint,
                     lambda path: convert(path, tmp_path / 'out.pth')):
            with pytest.raises(UserError) as e:
                read(path)
            assert str(path) in one_sentence(e) and found in str(e.value)
    assert not (tmp_path / 'out.pth').exists()


# ------------------------------------------------------ names, both ways


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('form', ['train', 'deploy'])
def test_there_and_back(name, form):
    golden = load(name)
    theirs = golden if form == 'train' else golden['deploy']
    theirs = theirs['state_dict']
    ours = from_authors(theirs)
    model = build_classifier(golden, deploy=form == 'deploy')
    # Every entry, lambda included.
    assert set(ours) == set(model.state_dict())
    assert same(to_authors(ours), theirs)
    # Also after the model has had it.
    back = to_authors(model.state_dict())
    assert same({k: back[k] for k in theirs}, theirs)
    assert len(back) == len(theirs)


def test_lambda_is_one_and_must_be():
    ours = from_authors(load('plain')['state_dict'])
    lams = [k for k in ours if k.endswith('.lam')]
    assert len(lams) == 6  # the stem, four stages, the head
    assert all(ours[k] == 1 for k in lams)
    ours[lams[1]] = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(UserError, match=f'{lams[1]} is 0.5'):
        to_authors(ours)


def test_prefix_of_ddp():
    theirs = load('plain')['state_dict']
    ours = from_authors({f'module.{k}': v for k, v in theirs.items()})
    assert same(ours, from_authors(theirs))


# Widths in units of 128, as in the paper's table and the authors' release.
WIDTHS = {
    '5': [4, 8, 16, 32],
    '6': [4, 8, 16, 32, 32],
    '7': [4, 4, 8, 16, 32, 32],
    '8': [4, 4, 8, 16, 16, 32, 32],
    '9': [4, 4, 8, 16, 16, 16, 32, 32],
    '10': [4, 4, 8] + [16] * 4 + [32, 32],
    '11': [4, 4, 8] + [16] * 5 + [32, 32],
    '12': [4, 4, 8] + [16] * 6 + [32, 32],
    '13': [4, 4, 8] + [16] * 7 + [32, 32],
    '13-x1.5': [6, 6, 12] + [24] * 7 + [48, 48],
    '13-x1.5-ada': [6, 6, 12] + [24] * 7 + [48, 48],
}


FILES = dict(
    zip(WIDTHS, (name for name in PUBLISHED if 'act_num' not in name)))


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name', WIDTHS)
def test_published_variants_are_recognised(tmp_path, name, deploy):
    dims = [128 * d for d in WIDTHS[name]]
    path = tmp_path / f'{FILES[name]}.pth'
    theirs = random_authors_weights(dims, deploy=deploy)
    torch.save(dict(model=theirs, epoch=299), path)
    convert(path, tmp_path / 'out.pth')
    found = Config.fromfile(tmp_path / 'out.py').model
    assert found == dict(
        type='ImageClassifier',
        backbone=dict(
            type='VanillaNet',
            arch=name,
            in_channels=3,
            act_num=3,
            deploy=deploy),
        head=dict(
            type='VanillaNetHead',
            num_classes=1000,
            in_channels=dims[-1],
            deploy=deploy))
    with torch.device('meta'):
        model = ImageClassifier(found['backbone'], head=found['head'])
    # The lambdas are numbers, which a meta tensor has none of.
    ours = {
        k: v if k.endswith('.lam') else v.to('meta')
        for k, v in read_checkpoint(tmp_path / 'out.pth')['state_dict'].items()
    }
    model.load_state_dict(ours, strict=True)
    # What is taken where the widths are none of these: the published strides
    # follow the same rule.
    strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
    assert strides == list(VanillaNet.arch_settings[name]['strides'])


def test_published_names():
    assert len(PUBLISHED) == 12
    assert {v['arch'] for v in PUBLISHED.values()} == set(
        VanillaNet.arch_settings)
    dims = [128 * d for d in WIDTHS['13']]
    ours = from_authors(random_authors_weights(dims, act_num=4))
    found = describe(ours)['backbone']
    assert dict(arch=found['arch'], act_num=found['act_num']
                ) == PUBLISHED['vanillanet_13_act_num_4_kd_pretrain']


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('deploy', [False, True])
def test_other_widths_become_an_arch(name, deploy):
    golden = load(name)
    kwargs = golden['kwargs']
    theirs = golden['deploy'] if deploy else golden
    found = describe(from_authors(theirs['state_dict']))
    assert found['backbone']['arch'] == dict(
        dims=kwargs['dims'], strides=kwargs['strides'])
    assert found['backbone']['act_num'] == kwargs['act_num']
    assert found['backbone']['deploy'] == deploy
    assert found['head']['num_classes'] == kwargs['num_classes']


def test_wrong_architecture():
    theirs = load('plain')['state_dict']
    resnet = MODELS.build(dict(type='ResNet', depth=18)).state_dict()
    with pytest.raises(UserError, match='not the entries .* conv1.weight'):
        from_authors(resnet)
    missing = {k: v for k, v in theirs.items() if k != 'stages.2.act.weight'}
    with pytest.raises(UserError, match='backbone.stages.2.act.conv.weight'):
        from_authors(missing)
    headless = {k: v for k, v in theirs.items() if not k.startswith('cls')}
    with pytest.raises(UserError, match='head.classifier'):
        from_authors(headless)
    shape = {**theirs, 'stages.1.conv1.0.bias': torch.ones(7)}
    with pytest.raises(UserError, match='backbone.stages.1.conv.conv1.bias'):
        from_authors(shape)
    more = {**theirs, 'stages.7.act.weight': torch.ones(8, 1, 7, 7)}
    with pytest.raises(UserError, match='backbone.stages.7.act.conv.weight'):
        from_authors(more)


# ---------------------------------------------------------- vanillanet://


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
    with pytest.raises(UserError, match='cut short.*put the file by hand'):
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


# --------------------------------------------------------------- convert


def test_convert_tells_ada_by_names(tmp_path):
    dims = [128 * d for d in WIDTHS['13-x1.5']]
    theirs = random_authors_weights(dims, deploy=True)
    for name, args, arch in [
        ('vanillanet_13_x1_5', None, '13-x1.5'),
        ('vanillanet_13_x1_5_ada_pool', None, '13-x1.5-ada'),
        ('best', Namespace(model='vanillanet_13_x1_5_ada_pool'),
         '13-x1.5-ada'),
        ('best', Namespace(model='vanillanet_13_x1_5'), '13-x1.5'),
        ('best', None, None),
    ]:
        torch.save(dict(model=theirs, args=args), tmp_path / f'{name}.pth')
        said = convert(tmp_path / f'{name}.pth', tmp_path / 'out.pth')
        cfg = Config.fromfile(tmp_path / 'out.py')
        assert cfg.model.backbone.arch == (arch or '13-x1.5')
        assert ('are alike' in said) == (arch is None)


def test_convert_reads_the_key_that_it_is_told(tmp_path):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=different(theirs), model_ema=theirs), src)
    for key, wanted in [(None, theirs), ('model_ema', theirs),
                        ('model', different(theirs))]:
        convert(src, dst, key=key)
        state_dict = read_checkpoint(dst)['state_dict']
        assert same(state_dict, from_authors(wanted))
    torch.save(dict(model=theirs), src)
    with pytest.raises(UserError, match='holds no model_ema, but model'):
        convert(src, dst, key='model_ema')


def test_convert_refuses(tmp_path):
    theirs = load('plain')['state_dict']
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=theirs), src)
    before = src.read_bytes()
    for bad in (src, tmp_path / 'b.py', tmp_path, tmp_path / 'no' / 'b.pth'):
        with pytest.raises(UserError, match='cannot write to'):
            convert(src, bad)
    with pytest.raises(UserError, match='holds no state_dict'):
        convert(src, dst, to='authors')
    ours = from_authors(theirs)
    ours['head.classifier.act.lam'] = torch.tensor(0.25)
    torch.save(dict(state_dict=ours), tmp_path / 'ours.pth')
    with pytest.raises(UserError, match='act.lam is 0.25'):
        convert(tmp_path / 'ours.pth', dst, to='authors')
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'ours.pth']
    assert src.read_bytes() == before


def test_convert_leaves_no_file_when_it_is_cut_off(tmp_path, monkeypatch):
    src, dst = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(model=load('plain')['state_dict']), src)

    def full_disk(self, file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Config, 'dump', full_disk)
    with pytest.raises(OSError):
        convert(src, dst)
    assert os.listdir(tmp_path) == ['a.pth']
