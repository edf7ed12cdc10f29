# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checks of the packages that mmvanilla needs."""
import importlib.util
import runpy
from pathlib import Path

from packaging.version import Version

from .errors import UserError

# Import name: the oldest release that works. setup.py requires none of these
# packages: those of OneDL and of OpenMMLab share their import names, and
# installing one over the other breaks both.
MINIMUM = dict(mmengine='0.10.7', mmcv='2.1.0', mmpretrain='1.2.0')
# Import name: the extra of setup.py that installs the package.
EXTRAS = dict.fromkeys(('mmdet', 'mmseg'), 'onedl-downstream') | (
    dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'),
                  'export'))
INSTALL = "in a clone of mmvanilla, run pip install -e '.[{}]'"


class RequirementError(UserError, ImportError):
    """A package is missing or too old; the text says how to install it."""


def require(*names: str) -> None:
    """Raise RequirementError if optional packages are not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RequirementError(f'{name} is not installed: '
                                   f'{INSTALL.format(EXTRAS[name])}')
        if name in ('mmdet', 'mmseg') and not importlib.util.find_spec(
                'mmcv._ext'):
            raise RequirementError(
                f'{name} needs the compiled ops of mmcv, which are not '
                'installed: in a clone of mmvanilla, run '
                'requirements/build_mmcv.sh')


def check_requirements() -> None:
    """Raise RequirementError if mmengine, mmcv or mmpretrain is unusable."""
    for name, minimum in MINIMUM.items():
        spec = importlib.util.find_spec(name)
        found = 'none'
        if spec is not None and spec.origin is not None:
            # Do not import the package, which may fail if it is too old.
            found = runpy.run_path(
                str(Path(spec.origin).with_name('version.py')))['__version__']
        if found == 'none' or Version(found) < Version(minimum):
            raise RequirementError(f'mmvanilla needs {name} >= {minimum}, but '
                                   f'found {found}: {INSTALL.format("onedl")}')
