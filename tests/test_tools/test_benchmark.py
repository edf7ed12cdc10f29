# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""tools/benchmark.py, as a user calls it."""
import json

from tiny import refused, run_tool


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
    assert '| VanillaNet-5 | plain PyTorch ' in done.stdout
    assert '| VanillaNet-5 | optimized, eager ' in done.stdout
    table = done.stdout[done.stdout.index('|'):done.stdout.index('\nwrote')]
    assert (tmp_path / 'speed.md').read_text().startswith(table)
    content = json.loads((tmp_path / 'speed.json').read_text())
    assert [m['form'] for m in content['measurements']] == ['plain', 'eager']
    assert (tmp_path / 'speed.png').stat().st_size < 300e3


def test_refuses_in_one_sentence(tmp_path, monkeypatch, capfd):
    (tmp_path / 'notes.json').write_text('mine')
    for arguments, sentence in ((['VanilaNet-6'], 'did you mean VanillaNet-6'),
                                (['5', '--out', 'no/speed'],
                                 'does not exist'),
                                (['5', '--out', 'notes'],
                                 'mmvanilla did not write it')):
        error = refused(
            monkeypatch, capfd, 'benchmark.py', *arguments, cwd=tmp_path)
        assert sentence in error
    assert [path.name for path in tmp_path.iterdir()] == ['notes.json']
