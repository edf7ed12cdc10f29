# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import os
import signal
import subprocess
import sys
import time

import ablation as tool
import pytest
from grid import Ablation, Row, run_config
from mmengine.config import Config
from PIL import Image
from report import make_table, write_report
from tiny import ROOT

from mmvanilla.utils.errors import UserError

ABLATION = ROOT / 'projects' / 'ablation'
GRID = f'''
_base_ = '{ABLATION}/configs/series.py'
train_dataloader = dict(dataset=dict(indices=64))
val_dataloader = dict(dataset=dict(indices=64))
model = dict(
    backbone=dict(arch=dict(dims=[4, 8, 8], strides=[2, 1])),
    head=dict(in_channels=8))
train_cfg = dict(max_epochs=2)
grid = dict(_delete_=True, title='A small one', rows=[
    dict(name=f'n = {{n}}', change=dict(
        model=dict(backbone=dict(act_num=n)))) for n in ROWS])
'''


def write_grid(folder, rows) -> None:
    (folder / 'small.py').write_text(GRID.replace('ROWS', str(rows)))


def start_grid(folder, *options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ABLATION / 'ablation.py', 'small.py', '--out', 'out',
         '--seeds', '2', *options],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(ROOT)), start_new_session=True)


def run_grid(folder, *options, code: int = 0) -> str:
    process = start_grid(folder, *options)
    out = process.communicate(timeout=240)
    assert process.returncode == code, out
    return ''.join(out)


def finished(folder) -> dict:
    """What each finished run wrote, and when."""
    return {
        str(path.relative_to(folder)): (path.read_text(),
                                        path.stat().st_mtime_ns)
        for path in folder.glob('out/runs/small/*/seed-*.json')
    }


@pytest.mark.slow
def test_killed_half_way_and_run_again(tmp_path):
    write_grid(tmp_path, [0])
    process = start_grid(tmp_path, '--workers', '1')
    deadline = time.monotonic() + 240
    while not finished(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished(tmp_path)
    assert len(before) == 1 and not (tmp_path / 'out' / 'small.md').exists()

    # Another row is trained too.
    write_grid(tmp_path, [0, 1])
    assert '1 of 4 runs are finished already' in run_grid(tmp_path)
    after = finished(tmp_path)
    assert len(after) == 4 and before.items() <= after.items()
    # The numbers are those of the runs.
    content = json.loads((tmp_path / 'out' / 'small.json').read_text())
    for row, slug in zip(content['rows'], ['n---0', 'n---1'], strict=True):
        runs = [json.loads(after[f'out/runs/small/{slug}/seed-{s}.json'][0])
                for s in (0, 1)]
        assert row['accuracies'] == [run['accuracy'] for run in runs]


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path):
    write_grid(tmp_path, [-1])
    error = run_grid(tmp_path, code=1).strip().splitlines()[-1]
    assert error.startswith('error: the run out/runs/small/n----1/seed-')
    assert 'act_num must not be negative' in error


def test_each_run_is_one_of_the_seed():
    cfg = Config.fromfile(ABLATION / 'configs' / 'series.py')
    runs = [run_config(cfg, dict(), 36, seed) for seed in (0, 1)]
    assert [run.randomness.seed for run in runs] == [0, 1]
    assert 'grid' not in runs[0] and 'grid' in cfg
    half = run_config(cfg, dict(), 18, 0)
    assert half.train_cfg.max_epochs == half.train_cfg.val_interval == 18
    assert half.param_scheduler.T_max == 18
    assert half.custom_hooks[0].decay_epochs == 6


def test_report(tmp_path):
    rows = [Row('A', 'none', 60.0, [90.0, 92.0, 94.0]),
            Row('A', 'all', 62.5, [95.0, 95.0, 95.0]),
            Row('B', 'none', None, [50.0, 50.0, 53.0]),
            Row('B', 'all', None, [40.0, 40.0, 40.0])]
    ablation = Ablation('x', 'X', 1, 3, rows)
    lines = make_table(ablation).splitlines()
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    assert cells[2:] == [
        ['A', 'none', '92.00 ± 2.00', '', '60.00', ''],
        ['A', 'all', '95.00 ± 0.00', '+3.00', '62.50', '+2.50'],
        ['B', 'none', '51.00 ± 1.73', '', '', ''],
        ['B', 'all', '40.00 ± 0.00', '-11.00', '', '']]
    write_report(ablation, tmp_path)
    one = Ablation('y', 'One seed', 1, 1, [Row('', 'a', None, [90.0])])
    paths = write_report(one, tmp_path)
    assert '| a       | 90.00 ' in paths[0].read_text()
    content = json.loads(paths[1].read_text())
    assert content['rows'][0]['mean'] == 90 and not content['rows'][0]['std']
    assert Image.open(paths[2]).size > (300, 300)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize('grid, options, message', [
    ('seires', dict(), 'there is no grid "seires": use depth, finetune'),
    ('none.py', dict(), 'no config at none.py'),
    ('x = 1', dict(), 'is no grid'),
    ("grid = dict(title='', rows=[dict(name='a', change=dict())] * 2)",
     dict(), 'no max_epochs'),
    ("train_cfg = dict(max_epochs=1)\ngrid = dict(title='', rows=[dict("
     "name='a', change=dict())] * 2)", dict(), 'of different names'),
    ('series', dict(seeds=0), '--seeds, --epochs and --workers must be'),
])
def test_refusals(tmp_path, grid, options, message):
    if '=' in grid:
        (tmp_path / 'mine.py').write_text(grid)
        grid = str(tmp_path / 'mine.py')
    with pytest.raises(UserError, match=message):
        tool.main(grid, str(tmp_path / 'out'), **options)
    assert not (tmp_path / 'out').exists()
