# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest
from tiny import ROOT

from mmvanilla.utils.requirements import RequirementError, require

TOOLS = sorted((ROOT / 'tools').glob('[!o]*.py'))  # all but options.py
INSTALL = "in a clone of mmvanilla, run pip install -e '.[onedl]'"


def run(code: str, *options):
    return subprocess.run([sys.executable, *options, '-c', code],
                          capture_output=True, text=True)


def run_with(packages: dict, code: str, tmp_path):
    """Run code where only these OpenMMLab packages are found."""
    for name, version in packages.items():
        (tmp_path / name).mkdir()
        # As real ones of the wrong age do, it does not even import.
        (tmp_path / name / '__init__.py').write_text('raise RuntimeError')
        (tmp_path / name / 'version.py').write_text(
            f'__version__ = {version!r}\n')
    hide = [n for n in ('mmengine', 'mmcv', 'mmpretrain') if n not in packages]
    return run(f'''
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name in {hide} else find_spec(name, *args))
sys.modules.update(dict.fromkeys({hide}))
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
{code}
''')


@pytest.mark.parametrize('name, minimum', [('mmengine', '0.10.7'),
                                           ('mmcv', '2.1.0'),
                                           ('mmpretrain', '1.2.0')])
def test_too_old(name, minimum, tmp_path):
    new = dict(mmengine='99.0', mmcv='99.0', mmpretrain='99.0')
    done = run_with({**new, name: '0.1.0rc1'}, '''
try:
    import mmvanilla
except ImportError as e:
    print(e)
''', tmp_path)
    assert (done.stdout, done.stderr) == (
        f'mmvanilla needs {name} >= {minimum}, but found 0.1.0rc1: '
        f'{INSTALL}\n', '')


def test_tools_say_what_is_missing(tmp_path):
    done = run_with({}, f'''
import runpy
sys.path.insert(0, {str(ROOT / 'tools')!r})
sys.argv = ['train.py', 'config.py']
runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')
''', tmp_path)
    assert (done.returncode, done.stderr) == (
        1, 'error: mmvanilla needs mmengine >= 0.10.7, but found none: '
        f'{INSTALL}\n')


@pytest.mark.parametrize('tool', [
    *TOOLS, ROOT / 'projects' / 'benchmark' / 'benchmark.py'
], ids=lambda path: path.name)
def test_help_imports_no_package(tool):
    # -S: without site-packages, where torch and the toolboxes are.
    done = subprocess.run([sys.executable, '-S', str(tool), '--help'],
                          capture_output=True, text=True)
    assert done.stdout.startswith('usage: ') and done.returncode == 0


def test_import_is_light_and_needs_no_posix():
    """What Windows does not have is used where it is needed, if at all."""
    done = run('''
import os, signal, sys
import mmpretrain.datasets, mmpretrain.engine, mmpretrain.models
import rich.console
for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):
    sys.modules[name] = None
for module, name in ((os, 'O_DIRECTORY'), (os, 'fork'), (os, 'getuid'),
                     (signal, 'pthread_sigmask'), (signal, 'SIGKILL')):
    delattr(module, name)
before = set(sys.modules)
import mmvanilla
heavy = {'mmdet', 'mmseg', 'onnx', 'onnxruntime', 'openvino', 'setuptools',
         'sklearn', 'torch._inductor', 'torch.utils.benchmark'}
assert not heavy & (set(sys.modules) - before)
import mmvanilla.engine.predict, mmvanilla.export
''')
    assert done.returncode == 0, done.stderr


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
