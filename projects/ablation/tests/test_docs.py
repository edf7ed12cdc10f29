# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The page quotes the results in the JSON files."""
import json

import pytest
from grid import Ablation, Row
from report import make_table
from tiny import ROOT

ABLATION = ROOT / 'projects' / 'ablation'
NAMES = sorted(path.stem for path in (ABLATION / 'configs').glob('*.py'))


def read(name: str) -> Ablation:
    content = json.loads((ABLATION / 'results' / f'{name}.json').read_text())
    rows = []
    for row in content.pop('rows'):
        del row['mean'], row['std']
        rows.append(Row(**row))
    return Ablation(rows=rows, **content)


@pytest.mark.parametrize('name', NAMES)
def test_page(name):
    ablation = read(name)
    assert make_table(ablation) in (ABLATION / 'README.md').read_text()
    assert all(len(row.accuracies) == ablation.seeds >= 3
               for row in ablation.rows)
