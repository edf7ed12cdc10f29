# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What must be installed beside mmvanilla, checked when it is imported."""
import importlib.util
import runpy
from pathlib import Path

from packaging.version import Version

# Import name: the oldest release that works. setup.py requires neither the
# original OpenMMLab packages nor OneDL's, since these own the same import
# names and installing one over the other breaks both.
MINIMUM = dict(mmengine='0.10.0', mmcv='2.0.0', mmpretrain='1.2.0')
INSTALL = "pip install 'mmvanilla[onedl]'"


def check_requirements() -> None:
    """Refuse to go on without the packages that mmvanilla plugs into.

    Raises:
        ImportError: In one sentence: which is missing or too old, what was
            found, and what installs it.
    """
    for name, minimum in MINIMUM.items():
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f'mmvanilla needs {name} >= {minimum}, but '
                              f'found none: {INSTALL}')
        # Read, not imported: a package of the wrong age may not import.
        found = runpy.run_path(
            str(Path(spec.origin).with_name('version.py')))['__version__']
        if Version(found) < Version(minimum):
            raise ImportError(f'mmvanilla needs {name} >= {minimum}, but '
                              f'found {found}: {INSTALL}')
