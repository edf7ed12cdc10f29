# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The notebook is valid and committed as it was before it ran.

docs/run_blocks.py executes it.
"""
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def notebook():
    path = ROOT / 'demo/tutorial.ipynb'
    return json.loads(path.read_text(encoding='utf-8'))


def test_format(notebook):
    # Nbformat 4.5, https://nbformat.readthedocs.io: cells have ids since.
    assert notebook['nbformat'] == 4 and notebook['nbformat_minor'] == 5
    assert notebook['metadata']['kernelspec']['name'] == 'python3'
    ids = [cell['id'] for cell in notebook['cells']]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r'[a-zA-Z0-9_-]{1,64}', name) for name in ids)
    common = {'cell_type', 'id', 'metadata', 'source'}
    keys = dict(
        markdown=common, code=common | {'execution_count', 'outputs'})
    for cell in notebook['cells']:
        assert set(cell) == keys[cell['cell_type']]
        assert all(isinstance(line, str) for line in cell['source'])
        assert cell['metadata'] == {}
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None


def test_links_lead_to_files(notebook):
    found = 0
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown':
            for target in re.findall(r'\]\(([^)#]+)', ''.join(cell['source'])):
                if '://' not in target:
                    assert (ROOT / 'demo' / target).is_file(), target
                    found += 1
    assert found
