# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest
from tiny import ROOT


def import_with(packages, tmp_path):
    """Import mmvanilla where only these OpenMMLab packages are found."""
    for name, version in packages.items():
        (tmp_path / name).mkdir()
        # As real ones of the wrong age do, it does not even import.
        (tmp_path / name / '__init__.py').write_text('raise RuntimeError')
        (tmp_path / name / 'version.py').write_text(
            f'__version__ = {version!r}\n')
    hide = [n for n in ('mmengine', 'mmcv', 'mmpretrain') if n not in packages]
    code = f'''
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name in {hide} else find_spec(name, *args))
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
import mmvanilla
'''
    done = subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True)
    return done.returncode, done.stderr.strip().splitlines()[-1]


NEW = dict(mmengine='99.0', mmcv='99.0', mmpretrain='99.0')
INSTALL = "pip install 'mmvanilla[onedl]'"


@pytest.mark.parametrize('name, minimum', [('mmengine', '0.10.0'),
                                           ('mmcv', '2.0.0'),
                                           ('mmpretrain', '1.2.0')])
def test_missing_or_too_old(name, minimum, tmp_path):
    others = {k: v for k, v in NEW.items() if k != name}
    assert import_with(others, tmp_path) == (
        1, f'ImportError: mmvanilla needs {name} >= {minimum}, but found '
        f'none: {INSTALL}')
    folder = tmp_path / 'old'
    folder.mkdir()
    assert import_with({**NEW, name: '0.1.0rc1'}, folder) == (
        1, f'ImportError: mmvanilla needs {name} >= {minimum}, but found '
        f'0.1.0rc1: {INSTALL}')
