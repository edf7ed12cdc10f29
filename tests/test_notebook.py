# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The notebook is valid, and committed without results.

docs/run_blocks.py executes it.
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_notebook():
    path = ROOT / 'demo/tutorial.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    # Nbformat 4.5, https://nbformat.readthedocs.io: cells have ids since.
    assert notebook['nbformat'] == 4 and notebook['nbformat_minor'] == 5
    assert notebook['metadata']['kernelspec']['name'] == 'python3'
    cells = notebook['cells']
    ids = {cell['id'] for cell in cells}
    assert len(ids) == len(cells)
    assert all(re.fullmatch(r'[a-zA-Z0-9_-]{1,64}', name) for name in ids)
    code = dict(execution_count=None, outputs=[])
    for cell in cells:
        kind, source = cell.pop('cell_type'), ''.join(cell.pop('source'))
        assert cell == dict(id=cell['id'], metadata={}) | (
            code if kind == 'code' else {})
        for target in re.findall(r'\]\(([^)#]+)', source):
            if kind == 'markdown' and '://' not in target:
                assert (path.parent / target).is_file(), target
