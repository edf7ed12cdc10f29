# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Tables in the pages are those of the JSON files that commands wrote."""
import json
import re
import shlex
import sys

import benchmark
import measure
import pytest
from downstream import exports
from tiny import ROOT

FIGURES = ROOT / 'docs' / 'figures'
PERFORMANCE = 'docs/en/performance.md'
BENCHMARKS = dict.fromkeys(
    ('inference', 'training', 'training-13', 'retinanet', 'rtmdet'),
    PERFORMANCE) | dict.fromkeys(
        ('cuda', 'cuda-compiled', 'cuda-batches', 'cuda-training'),
        'docs/en/gpu.md')
DETECTION = 'docs/en/detection_segmentation.md'
DETECTION_ZH = 'docs/zh_cn/detection_segmentation.md'


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding='utf-8'))


@pytest.mark.parametrize('name', BENCHMARKS)
def test_benchmark(name, monkeypatch):
    result, text = read(f'docs/figures/{name}.json'), page(BENCHMARKS[name])
    assert f'\n{measure.table(result)}\n' in text
    # The command beside the table has the settings of the file.
    (command, ) = re.findall(
        rf'^python (\S+/benchmark\.py .*--out docs/figures/{name}( .*)?)$',
        text.replace('\\\n', ' '), re.M)
    monkeypatch.setattr(sys, 'argv', shlex.split(command[0]))
    arguments = vars(benchmark.parse_args())
    settings = dict(result['settings'])
    # One number for a square, or height and width.
    if arguments['forms'] is None:  # the program's choice
        del settings['forms']
    wanted, given = (x.pop('size') for x in (settings, arguments))
    wanted = wanted if isinstance(wanted, list) else [wanted]
    assert (2 * wanted)[:2] == (2 * given)[:2]
    assert {k: arguments[k] for k in settings} == settings


@pytest.mark.parametrize('name', [DETECTION, DETECTION_ZH])
def test_table_of_detectors(name):
    detectors = read('docs/figures/complexity.json')['detectors_640']
    rows = [
        f'| {model} | {counts["parameters"] / 1e6:.2f} | '
        f'{counts["macs"] / 1e9:.2f} |' for model, counts in detectors.items()
    ]
    assert '| --- |\n' + '\n'.join(rows) + '\n\n' in page(name)


def test_table_of_exported_files():
    content = read('docs/figures/exports.json')
    assert f'\n{exports.table(content)}\n' in page(DETECTION)
    for found in content['models'].values():
        for name, metrics in found.items():
            same = name.endswith(('checkpoint', 'fp32'))
            for key in metrics if same else ():
                assert round(metrics[key], 3) == round(
                    found['checkpoint'][key], 3)


def test_table_of_techniques():
    rows = {}
    for row in read('projects/ablation/results/techniques.json')['rows']:
        rows.setdefault(row['group'], []).append(row)
    text = page('docs/en/experiments.md')
    names = ['neither', 'deep training', 'series activation', 'both']
    assert f'3 seeds | {" | ".join(names)} |' in text
    for network, found in rows.items():
        assert [row['name'] for row in found] == names
        cells = ' | '.join(
            f'{row["mean"]:.2f} ± {row["std"]:.2f}' for row in found)
        width = r'\(1/\d+( as wide)?\)'
        assert re.search(rf'\| {network} {width} {re.escape(f"| {cells} |")}',
                         text)


def test_each_file_of_figures_is_named_in_a_page():
    pages = [ROOT / 'README.md', *(ROOT / 'docs' / 'en').glob('*.md')]
    text = ''.join(path.read_text(encoding='utf-8') for path in pages)
    names = {path.name for path in FIGURES.glob('*.json')}
    assert names >= {f'{name}.json' for name in BENCHMARKS}
    assert [n for n in names if f'docs/figures/{n}' not in text] == []
