# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""tools/benchmark.py, as a user calls it."""
import json

from ..tiny import run_tool


def test_prints_and_writes(tmp_path):
    done = run_tool(
        'benchmark.py',
        '5',
        '--size',
        '32',
        '--repeats',
        '2',
        '--warmup',
        '0',
        '--threads',
        '1',
        '--out',
        'speed',
        cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '| VanillaNet-5 | plain PyTorch |' in done.stdout
    assert '| VanillaNet-5 | mmvanilla ' in done.stdout
    assert (tmp_path / 'speed.md').read_text().strip() in done.stdout
    content = json.loads((tmp_path / 'speed.json').read_text())
    assert [m['form'] for m in content['measurements']] == ['plain', 'ours']
    assert (tmp_path / 'speed.png').stat().st_size < 300e3


def test_refuses_in_one_sentence(tmp_path):
    for arguments, sentence in ((['VanilaNet-6'], 'did you mean VanillaNet-6'),
                                (['5', '--out', 'no/speed'],
                                 'does not exist')):
        done = run_tool('benchmark.py', *arguments, cwd=tmp_path)
        assert done.returncode == 1
        error = done.stderr.strip().split('\n')[-1]
        assert error.startswith('error: ') and sentence in error
    assert not list(tmp_path.iterdir())
