# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The page quotes the results in the JSON files."""
import json
import math
import statistics

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


def row(name: str, setting: str) -> Row:
    return next(row for row in read(name).rows if row.name == setting)


def sentences() -> list[str]:
    """The page's sentences with a figure, written from the JSON files."""
    seconds = {
        name: sum(sum(row.seconds) for row in read(name).rows)
        for name in NAMES
    }
    none, one, recipe = [row('series', f'n = {n}') for n in (0, 1, 3)]
    schedule = [row.mean for row in read('schedule').rows]
    finetune = [row.mean for row in read('finetune').rows]
    before, after = [row('shortcut', f'{place} the activation')
                     for place in ('before', 'after')]
    without = row('shortcut', 'none')
    medians = [f'{statistics.median(row.seconds):.1f} s'
               for row in read('finetune').rows]
    return [
        'All runs together took {series:.0f} s for series, {techniques:.0f} s '
        'for techniques, {shortcut:.0f} s for shortcut, {schedule:.0f} s for '
        'schedule, {finetune:.0f} s for finetune and {depth:.0f} s for depth.'
        .format(**seconds),
        'At 98 % a test on 1,442 images has a standard error of '
        f'{standard_error(0.98):.1f} points, at 88 % of '
        f'{standard_error(0.88):.1f},',
        'without neighbours (n = 0) the network is '
        f'{recipe.mean - none.mean:.0f} points behind n = 3 here, '
        f'{recipe.paper - none.paper:.0f} in the paper.',
        f'where the paper still gains {recipe.paper - one.paper:.1f} points '
        'from n = 1 to n = 3',
        f'That they hurt, by {without.paper - before.paper:.1f} and '
        f'{without.paper - after.paper:.1f} points in the paper,',
        f'All schedules lie within {max(schedule) - min(schedule):.1f} '
        'points,',
        f'All three lie within {max(finetune) - min(finetune):.2f} points,',
        f'Median time of a run: {medians[0]}, {medians[1]} and {medians[2]},',
    ]


def standard_error(accuracy: float) -> float:
    """Of an accuracy on the images for testing, in points."""
    return 100 * math.sqrt(accuracy * (1 - accuracy) / 1442)


def test_sentences():
    page = ' '.join((ABLATION / 'README.md').read_text().split())
    assert [text for text in sentences() if text not in page] == []
