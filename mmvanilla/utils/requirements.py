# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Checks of the packages that mmvanilla needs."""
import importlib.util
import runpy
import sys
from pathlib import Path

from packaging.version import Version

from .errors import UserError

# Import name: the oldest release that works. setup.py requires none of these
# packages: those of OneDL and of OpenMMLab share their import names, and
# installing one over the other breaks both.
MINIMUM = dict(mmengine='0.10.0', mmcv='2.0.0', mmpretrain='1.2.0')
# Import name: the extra of setup.py that installs the package.
EXTRAS = dict(
    mmdet='onedl-downstream', mmseg='onedl-downstream', onnx='export',
    onnxscript='export', onnxruntime='export', openvino='export',
    nncf='export')


class RequirementError(UserError, ImportError):
    """A package is missing or too old; the text says how to install it."""


def require(*names: str) -> None:
    """Raise an error if optional packages are not installed.

    Args:
        *names (str): Import names, keys of ``EXTRAS``.

    Raises:
        RequirementError: If a package is missing; names it and the command
            that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RequirementError(
                f'{name} is not installed: {_install(EXTRAS[name])}')
        if name in ('mmdet', 'mmseg') and not importlib.util.find_spec(
                'mmcv._ext'):
            raise RequirementError(
                f'{name} needs the compiled ops of mmcv, which are not '
                'installed: in a clone of mmvanilla, run '
                'requirements/build_mmcv.sh')


def check_requirements() -> None:
    """Raise an error if mmengine, mmcv or mmpretrain is not usable.

    Raises:
        RequirementError: If a package is missing or too old; names it, the
            release found and the command that installs it. If nothing catches
            the error, Python prints that sentence instead of a traceback.
    """
    for name, minimum in MINIMUM.items():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # or a folder of that name
            found = 'none'
        else:
            # Do not import the package, which may fail if it is too old.
            found = runpy.run_path(
                str(Path(spec.origin).with_name('version.py')))['__version__']
            if Version(found) >= Version(minimum):
                continue
        sys.excepthook = _print_sentence
        raise RequirementError(f'mmvanilla needs {name} >= {minimum}, but '
                               f'found {found}: {_install("onedl")}')


def _install(extra: str) -> str:
    return f"in a clone of mmvanilla, run pip install -e '.[{extra}]'"


def _print_sentence(kind: type, error: BaseException, traceback) -> None:
    if isinstance(error, RequirementError):
        print(f'error: {error}', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
