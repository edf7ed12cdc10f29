# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
version = runpy.run_path(str(ROOT / 'mmvanilla' / 'version.py'))['__version__']

# The two lines of OpenMMLab releases own the same import packages, so neither
# is required by default: installing one over the other breaks both.
onedl = ['onedl-mmpretrain>=1.3.6', 'onedl-mmengine>=0.10.12',
         'onedl-mmcv>=2.3.6']
openmmlab = ['mmpretrain>=1.2.0', 'mmengine>=0.10.7', 'mmcv-lite>=2.0.0']
downstream = ['onedl-mmdetection>=3.5.1', 'onedl-mmsegmentation>=1.4.2',
              'ftfy']
export = ['onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf']
tests = ['pytest', 'pytest-xdist', 'tensorboard', 'timm']


class BuildWithMim(build_py):
    """Ship configs and tools in `.mim`, where OpenMMLab looks for them."""

    def run(self):
        super().run()
        mim = Path(self.build_lib) / 'mmvanilla' / '.mim'
        for folder in ('configs', 'tools'):
            shutil.copytree(
                ROOT / folder,
                mim / folder,
                ignore=shutil.ignore_patterns('__pycache__'),
                dirs_exist_ok=True)
        shutil.copy(ROOT / 'model-index.yml', mim)


setup(
    name='mmvanilla',
    version=version,
    description='VanillaNet for the OpenMMLab toolboxes',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmvanilla*']),
    install_requires=['packaging', 'scikit-learn', 'torch', 'torchvision'],
    extras_require={
        'onedl': onedl,
        'onedl-downstream': onedl + downstream,
        'openmmlab': openmmlab,
        'export': export,
        'tests': tests,
        'dev': tests + ['ruff'],
    },
    cmdclass={'build_py': BuildWithMim})
