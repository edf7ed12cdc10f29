# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What the docs quote is what was measured."""
import json

import pytest
from mmvanilla.experiments.ablation import Ablation, Row
from mmvanilla.experiments.report import make_table
from tiny import ROOT

DOCS = ROOT / 'docs'
NAMES = sorted(path.stem for path in (ROOT / 'configs/ablation').glob('*.py'))


def read(name: str) -> Ablation:
    content = json.loads((DOCS / 'experiments' / f'{name}.json').read_text())
    rows = []
    for row in content.pop('rows'):
        del row['mean'], row['std']
        rows.append(Row(**row))
    return Ablation(rows=rows, **content)


@pytest.mark.parametrize('name', NAMES)
def test_page(name):
    ablation = read(name)
    page = (DOCS / 'experiments.md').read_text()
    assert make_table(ablation) in page
    assert f'python tools/ablation.py {name}\n' in page
    assert f'![{name}](experiments/{name}.png)' in page
    assert (DOCS / 'experiments' / f'{name}.png').exists()
    assert all(len(row.accuracies) == 3 for row in ablation.rows)


def test_readme():
    text = (ROOT / 'README.md').read_text()
    for start in (0, 4, 8):
        rows = read('techniques').rows[start:start + 4]
        cells = [f'{row.mean:.2f} ± {row.std:.2f}' for row in rows]
        assert f'| {" | ".join(cells)} |\n' in text
    rows = read('series').rows
    assert (f'n = 0 reaches {rows[0].mean:.2f}, n = 3 {rows[3].mean:.2f}'
            in text)
