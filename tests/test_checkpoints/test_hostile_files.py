# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Attacks of hostile files on every place where a checkpoint is read."""
import io
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import hostile
import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.apis import get_model
from mmpretrain.registry import MODELS
from tiny import ROOT, build, tiny_cfg, train

from mmvanilla.checkpoints import convert, load_weights, read_checkpoint
from mmvanilla.engine.hooks import ReparameterizeHook
from mmvanilla.engine.test import test as evaluate
from mmvanilla.engine.train import train as start_training
from mmvanilla.export import export
from mmvanilla.reparam.merge import reparameterize
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.errors import UserError

COUNT = 2000


def test_fuzzed_files_in_processes(tmp_path):
    """No code runs, nothing crashes, nothing wrong is accepted."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    results = []
    for first in range(0, COUNT, COUNT // 2):
        done = subprocess.run(
            [sys.executable, hostile.__file__, tmp_path, str(first),
             str(first + COUNT // 2), str(COUNT)],
            env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
            capture_output=True, text=True, check=False)
        now = (tmp_path / f'{first}.now').read_text()
        assert done.returncode == 0, f'at {now}: {done.stderr[-2000:]}'
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert not (tmp_path / 'canary').exists()
    refused = [x for result in results for x in result['refused']]
    accepted = [x for result in results for x in result['accepted']]
    assert len(refused) + len(accepted) == COUNT
    # What is known to attack is refused; a mutation may do no harm.
    assert [x for x in accepted if not x.startswith('mutation')] == []
    assert [result['wrong'] for result in results] == [{}, {}]
    # A file of a kilobyte may not fill the memory.
    assert max(result['more_kilobytes'] for result in results) < 200_000
    # The mutated files were right before.
    for pickled in hostile.originals():
        hostile.write(tmp_path / 'a.pth', pickled,
                      {f'data/{i}': bytes(16) for i in range(8)})
        assert hostile.problem_of(read_checkpoint(tmp_path / 'a.pth')) is None


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple:
    """A trained run: its config and a checkpoint of it."""
    folder = tmp_path_factory.mktemp('run')
    cfg = tiny_cfg(folder, epochs=1, decay_epochs=1)
    cfg.dump(folder / 'config.py')
    train(cfg)
    return folder / 'config.py', folder / 'epoch_1.pth'


def ten_files(folder: Path, good: dict) -> dict[str, Path]:
    """Ten hostile files, some of them a whole checkpoint beside that."""
    canary = folder / 'canary'
    known = hostile.tricks(canary)
    nan = {key: value * float('nan') if value.is_floating_point() else value
           for key, value in good['state_dict'].items()}
    lams = {key: torch.tensor(2.0) if key.endswith('.lam') else value
            for key, value in good['state_dict'].items()}

    class Runs:

        def __reduce__(self):
            return os.system, (f'touch {canary}', )

    def saved(content, **kwargs) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **kwargs)
        return buffer.getvalue()

    contents = {
        'command': saved(dict(good, more=Runs())),
        'legacy': saved(
            dict(good, more=Runs()), _use_new_zipfile_serialization=False),
        'bare': pickle.dumps(Runs(), 2),
        'meta': saved(dict(good, meta=dict(good['meta'], time=Runs()))),
        'arrays': saved(dict(good, state_dict={
            k: v.numpy() for k, v in good['state_dict'].items()})),
        'empty': saved(dict(good, state_dict={})),
        'nan': saved(dict(good, state_dict=nan)),
        'lambda': saved(dict(good, state_dict=lams)),
    }  # yapf: disable
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f'{name}.pth'
        paths[name].write_bytes(content)
    for name in ('ndarray pointer', 'globals'):
        paths[name] = folder / f'{name.replace(" ", "_")}.pth'
        hostile.write(paths[name], known[name])
    return paths


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Address on the loopback of the files in tmp_path."""

    class Quiet(SimpleHTTPRequestHandler):

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


def backbone(path: str) -> None:
    MODELS.build(
        dict(
            type='VanillaNet',
            arch=dict(dims=[4, 8, 8], strides=[2, 1]),
            init_cfg=dict(
                type='Pretrained', checkpoint=path,
                prefix='backbone.'))).init_weights()


def resume_latest(config: str, path: str, work_dir: Path) -> None:
    """As ``train.py --resume`` without a name."""
    work_dir.mkdir()
    os.link(path, work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    start_training(config, str(work_dir), resume='auto')


def resume_by_mmengine(config: str, path: str, work_dir: Path) -> None:
    """As a script that uses mmengine's runner itself."""
    cfg = tiny_cfg(work_dir)
    cfg.load_from, cfg.resume = path, True
    build(cfg).train()


def merge_after_training(config: str, path: str, work_dir: Path) -> None:
    runner = build(tiny_cfg(work_dir))
    runner.message_hub.update_info('best_ckpt', path)
    ReparameterizeHook().after_train(runner)


ENTRIES = {
    'train --resume FILE': lambda config, path, out: start_training(
        config, str(out), resume=path),
    'train --resume': resume_latest,
    'runner.resume': resume_by_mmengine,
    'train load_from': lambda config, path, out: start_training(
        config, str(out), cfg_options=dict(load_from=path)),
    'init_cfg': lambda config, path, out: backbone(path),
    'get_model': lambda config, path, out: get_model(
        read_config(config), pretrained=path),
    'mmengine': lambda config, path, out: load_checkpoint(
        build_model(read_config(config)), path),
    'test': lambda config, path, out: evaluate(
        config, path, work_dir=str(out)),
    'test --deploy': lambda config, path, out: evaluate(
        config, path, deploy=True, work_dir=str(out)),
    'reparam': lambda config, path, out: reparameterize(
        read_config(config), path, out.with_suffix('.pth')),
    'export': lambda config, path, out: export(
        read_config(config), path, out.with_suffix('.pt2'), 'pt2'),
    'convert to ours': lambda config, path, out: convert(
        path, out.with_suffix('.pth')),
    'convert to official': lambda config, path, out: convert(
        path, out.with_suffix('.pth'), to='authors'),
    'vanillanet': lambda config, path, out: CheckpointLoader.load_checkpoint(
        f'vanillanet://{path}'),
    'hook': merge_after_training,
}  # yapf: disable


@pytest.mark.parametrize('entry', ENTRIES)
def test_entry_points(tmp_path, run, entry):
    config, checkpoint = map(str, run)
    files = ten_files(tmp_path, read_checkpoint(checkpoint))
    assert len(files) == 10
    for name, path in files.items():
        out = tmp_path / f'out_{path.stem}'
        with pytest.raises(UserError) as e:
            ENTRIES[entry](config, str(path), out)
        assert '\n' not in str(e.value) and str(path.stem) in str(e.value)
        assert not (tmp_path / 'canary').exists(), name
        assert not list(tmp_path.glob('out_*.*')), name
    # Read without care, the file does run a command.
    torch.load(files['command'], weights_only=False)
    assert (tmp_path / 'canary').exists()


@pytest.mark.parametrize('entry', ['init_cfg', 'test', 'train load_from',
                                   'get_model', 'reparam'])
def test_entry_points_over_http(tmp_path, run, served, entry):
    config, checkpoint = map(str, run)
    for path in ten_files(tmp_path, read_checkpoint(checkpoint)).values():
        with pytest.raises(UserError) as e:
            ENTRIES[entry](config, served + path.name,
                           tmp_path / f'out_{path.stem}')
        assert '\n' not in str(e.value) and path.name in str(e.value)
        assert not (tmp_path / 'canary').exists()
    (tmp_path / 'good.pth').write_bytes(Path(checkpoint).read_bytes())
    if entry == 'init_cfg':
        backbone(f'{served}good.pth')


def test_no_text_of_a_checkpoint_is_executed(tmp_path, run):
    """mmengine's runner evaluates meta['config'] when it resumes."""
    config, checkpoint = run
    code = f'open({str(tmp_path / "canary")!r}, "w").close()'
    content = torch.load(checkpoint, weights_only=False)
    content['meta'].update(config=code, cfg=code)
    content['message_hub']['runtime_info']['cfg'] = code
    torch.save(content, tmp_path / 'epoch_1.pth')
    for resume in (resume_by_mmengine, ENTRIES['train --resume FILE']):
        work_dir = tmp_path / resume.__name__.strip('<>')
        resume(str(config), str(tmp_path / 'epoch_1.pth'), work_dir)
        assert not (tmp_path / 'canary').exists()
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_1.pth'))
    # mmengine's inferencers would evaluate these two.
    assert 'cfg' not in loaded['meta']
    assert 'cfg' not in loaded['message_hub']['runtime_info']


def test_what_others_register_does_not_matter(tmp_path, run):
    """OneDL's mmengine registers the real getattr with torch."""
    hostile.write(tmp_path / 'a.pth',
                  hostile.tricks(tmp_path / 'canary')['globals'])
    allowed = [getattr, np.ndarray, np.dtype, os.system]
    with torch.serialization.safe_globals(allowed):
        with pytest.raises(UserError, match='getattr'):
            read_checkpoint(tmp_path / 'a.pth')
        load_weights(build_model(read_config(str(run[0]))), str(run[1]))
