# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What must be installed beside mmvanilla, and what installs it."""
import importlib.util
import runpy
import sys
from pathlib import Path

from packaging.version import Version

from .errors import UserError

# Import name: the oldest release that works. setup.py requires neither the
# original OpenMMLab packages nor OneDL's, since these own the same import
# names and installing one over the other breaks both.
MINIMUM = dict(mmengine='0.10.0', mmcv='2.0.0', mmpretrain='1.2.0')
# Import name: the extra of setup.py that brings the package.
EXTRAS = dict(
    mmdet='onedl-downstream', mmseg='onedl-downstream', onnx='export',
    onnxscript='export', onnxruntime='export', openvino='export',
    nncf='export')


class RequirementError(UserError, ImportError):
    """A package is missing or too old; the text says what installs it."""


def require(*names: str) -> None:
    """Refuse to go on without packages of an extra.

    Args:
        *names (str): Import names.

    Raises:
        RequirementError: In one sentence: which package is missing and what
            installs it.
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
    """Refuse to import mmvanilla without the packages that it plugs into.

    Raises:
        RequirementError: In one sentence: which package is missing or too
            old, what was found, and what installs it. Where nothing catches
            it, Python prints that sentence in place of a traceback.
    """
    for name, minimum in MINIMUM.items():
        spec = importlib.util.find_spec(name)
        if spec is None:
            found = 'none'
        else:
            # Read, not imported: a package of the wrong age may not import.
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
