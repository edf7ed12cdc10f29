# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import pytest
from grid import Ablation, Row, run_config
from mmengine.config import Config
from PIL import Image
from report import make_table, write_report
from tiny import ROOT, refused, run_tool

ABLATION = ROOT / 'projects' / 'ablation'
TOOL = ABLATION / 'ablation.py'

GRID = f'''
_base_ = '{ABLATION}/configs/series.py'
train_dataloader = dict(dataset=dict(indices=64))
val_dataloader = dict(dataset=dict(indices=64))
model = dict(
    backbone=dict(arch=dict(dims=[4, 8, 8], strides=[2, 1])),
    head=dict(in_channels=8))
train_cfg = dict(max_epochs=2)
grid = dict(
    _delete_=True,
    title='A small one',
    rows=[
        dict(name=f'n = {{n}}', paper=50 + 10 * n,
             change=dict(model=dict(backbone=dict(act_num=n))))
        for n in ROWS
    ])
'''


def write_grid(folder, rows) -> None:
    (folder / 'small.py').write_text(GRID.replace('ROWS', str(rows)))


def run_grid(folder, *options):
    done = run_tool(TOOL, 'small.py', '--out', 'out', '--seeds', 2, *options,
                    cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finished(folder) -> dict:
    """What each finished run wrote, and when."""
    return {
        str(path.relative_to(folder)): (path.read_text(),
                                        path.stat().st_mtime_ns)
        for path in folder.glob('out/runs/small/*/seed-*.json')
    }


def is_alive(pid: int) -> bool:
    try:
        # A zombie process has ended already.
        status = open(f'/proc/{pid}/stat').read()
        return status.rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_killed_half_way_and_run_again(tmp_path):
    write_grid(tmp_path, [0, 1])
    process = subprocess.Popen(
        [sys.executable, TOOL, 'small.py', '--out', 'out', '--seeds', '2',
         '--workers', '1'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not finished(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [
        int(pid) for pid in open(
            f'/proc/{process.pid}/task/{process.pid}/children').read().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(tmp_path)
    assert 0 < len(before) < 4 and children
    assert not (tmp_path / 'out' / 'small.md').exists()
    # Workers end with their parent: they would write the next run's files.
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, children))
    before = finished(tmp_path)

    out = run_grid(tmp_path)
    assert f'{len(before)} of 4 runs are finished already' in out
    after = finished(tmp_path)
    assert len(after) == 4
    assert before.items() <= after.items()

    # The table is whole, and its numbers are those of the runs.
    table = (tmp_path / 'out' / 'small.md').read_text()
    assert table in out
    content = json.loads((tmp_path / 'out' / 'small.json').read_text())
    assert [row['name'] for row in content['rows']] == ['n = 0', 'n = 1']
    for row in content['rows']:
        slug = re.sub(r'\W', '-', row['name'])
        accuracies = [
            json.loads(after[f'out/runs/small/{slug}/seed-{s}.json'][0])
            ['accuracy'] for s in (0, 1)
        ]
        assert row['accuracies'] == accuracies
        mean, std = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert f'| {row["name"]}   | {mean:.2f} ± {std:.2f} ' in table
    assert Image.open(tmp_path / 'out' / 'small.png').size > (300, 300)

    # Another row is the only one that is trained; of another length, all are.
    write_grid(tmp_path, [0, 1, 2])
    assert '4 of 6 runs are finished already' in run_grid(tmp_path)
    assert after.items() <= finished(tmp_path).items()
    write_grid(tmp_path, [0])
    assert 'finished already' not in run_grid(tmp_path, '--epochs', '1')


def test_each_run_is_one_of_the_seed():
    cfg = Config.fromfile(ABLATION / 'configs' / 'series.py')
    runs = [run_config(cfg, dict(), 36, seed) for seed in (0, 1)]
    assert [run.randomness.seed for run in runs] == [0, 1]
    assert 'grid' not in runs[0] and 'grid' in cfg
    half = run_config(cfg, dict(), 18, 0)
    assert half.train_cfg.max_epochs == half.train_cfg.val_interval == 18
    assert half.param_scheduler.T_max == 18
    assert half.custom_hooks[0].decay_epochs == 6
    cfg.param_scheduler = [
        dict(type='LinearLR', begin=0, end=4),
        dict(type='CosineAnnealingLR', begin=4, end=36, T_max=32)
    ]
    warm_up, cosine = run_config(cfg, dict(), 18, 0).param_scheduler
    assert (warm_up.begin, warm_up.end) == (0, 2)
    assert (cosine.begin, cosine.end, cosine.T_max) == (2, 18, 16)


ROWS = [
    Row('A', 'none', 60.0, [90.0, 92.0, 94.0]),
    Row('A', 'all', 62.5, [95.0, 95.0, 95.0]),
    Row('B', 'none', None, [50.0, 50.0, 53.0]),
    Row('B', 'all', None, [40.0, 40.0, 40.0]),
]


def test_table():
    lines = make_table(Ablation('x', 'X', 1, 3, ROWS)).splitlines()
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    assert cells[0] == [
        'network', 'setting', 'digits, top-1 % (3 seeds)', 'gain',
        'paper: ImageNet, top-1 %', 'gain'
    ]
    assert cells[2:] == [
        ['A', 'none', '92.00 ± 2.00', '', '60.00', ''],
        ['A', 'all', '95.00 ± 0.00', '+3.00', '62.50', '+2.50'],
        ['B', 'none', '51.00 ± 1.73', '', '', ''],
        ['B', 'all', '40.00 ± 0.00', '-11.00', '', ''],
    ]


def test_report_of_one_seed_and_no_paper(tmp_path):
    rows = [Row('', 'a', None, [90.0]), Row('', 'b', None, [91.0])]
    ablation = Ablation('x', 'X', 1, 1, rows)
    paths = write_report(ablation, tmp_path)
    assert [p.name for p in paths] == ['x.md', 'x.json', 'x.png']
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in paths)
    assert '| b       | 91.00 ' in paths[0].read_text()
    content = json.loads(paths[1].read_text())
    assert content['rows'][1]['mean'] == 91 and not content['rows'][1]['std']


@pytest.mark.parametrize('grid, options, message', [
    ('seires', [], 'there is no grid "seires": take one of depth, finetune'),
    ('none.py', [], 'no config at none.py'),
    ('no_grid.py', [], 'no_grid.py is no grid'),
    ('no_epochs.py', [], 'its train_cfg must have max_epochs'),
    ('no_change.py', [], 'a row of no_change.py lacks its name or its change'),
    ('twice.py', [], 'must be one or more, of different names'),
    ('series', ['--seeds', '0'], '--seeds must be positive, but got 0'),
    ('series', ['--epochs', '-1'], '--epochs must be positive, but got -1'),
    ('series', ['--workers', '0'], '--workers must be positive, but got 0'),
    ('series', ['--out', 'no_grid.py'], 'cannot make the folder'),
])
def test_refusals(tmp_path, monkeypatch, capfd, grid, options, message):
    rows = {
        'no_change': "[dict(name='a')]",
        'twice': "[dict(name='a', change=dict())] * 2"
    }
    (tmp_path / 'no_grid.py').write_text('x = 1')
    (tmp_path / 'no_epochs.py').write_text("grid = dict(title='', rows=[])")
    for name, text in rows.items():
        (tmp_path / f'{name}.py').write_text(
            f"grid = dict(title='', rows={text})\n"
            'train_cfg = dict(max_epochs=1)')
    error = refused(
        monkeypatch, capfd, TOOL, grid, *options, cwd=tmp_path)
    assert message in error
    assert not (tmp_path / 'work_dirs').exists()


def test_a_run_that_fails_is_named(tmp_path):
    write_grid(tmp_path, [0])
    text = (tmp_path / 'small.py').read_text()
    (tmp_path / 'small.py').write_text(
        text.replace('act_num=n', 'act_num=-1'))
    done = run_tool(TOOL, 'small.py', '--seeds', 1, cwd=tmp_path)
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith('error: the run "n---0" of seed 0 failed')
    assert 'act_num must not be negative' in error
