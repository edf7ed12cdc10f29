# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest
from tiny import ROOT

from mmvanilla.utils.requirements import RequirementError, require

TOOLS = sorted((ROOT / 'tools').glob('*.py'))
INSTALL = "in a clone of mmvanilla, run pip install -e '.[onedl]'"


def run_with(packages: dict, code: str, tmp_path):
    """Run code where only these OpenMMLab packages are found."""
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
sys.modules.update(dict.fromkeys({hide}))
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
{code}
'''
    return subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True)


NEW = dict(mmengine='99.0', mmcv='99.0', mmpretrain='99.0')


@pytest.mark.parametrize('name, minimum', [('mmengine', '0.10.0'),
                                           ('mmcv', '2.0.0'),
                                           ('mmpretrain', '1.2.0')])
def test_missing_or_too_old(name, minimum, tmp_path):
    others = {k: v for k, v in NEW.items() if k != name}
    done = run_with(others, 'import mmvanilla', tmp_path)
    assert (done.returncode, done.stderr) == (
        1, f'error: mmvanilla needs {name} >= {minimum}, but found none: '
        f'{INSTALL}\n')
    folder = tmp_path / 'old'
    folder.mkdir()
    done = run_with({**NEW, name: '0.1.0rc1'}, '''
try:
    import mmvanilla
except ImportError as e:
    print(e)
''', folder)
    assert (done.stdout, done.stderr) == (
        f'mmvanilla needs {name} >= {minimum}, but found 0.1.0rc1: '
        f'{INSTALL}\n', '')


@pytest.mark.parametrize('tool', TOOLS, ids=lambda path: path.name)
def test_tools_say_what_is_missing(tool, tmp_path):
    done = run_with(
        {}, f'''
import runpy
runpy.run_path({str(tool)!r}, run_name='__main__')
''', tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f'error: mmvanilla needs mmengine >= 0.10.0, but found none: '
        f'{INSTALL}\n')


def test_require_names_the_extra(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(RequirementError, match=r"onnxruntime.*'\.\[export\]'"):
        require('onnxruntime')
    with pytest.raises(ImportError, match=r"mmseg.*'\.\[onedl-downstream\]'"):
        require('mmseg')


def test_require_asks_for_compiled_ops(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec',
                        lambda name: None if name == 'mmcv._ext' else name)
    with pytest.raises(RequirementError, match='requirements/build_mmcv.sh'):
        require('mmdet')
