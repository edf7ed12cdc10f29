# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
version = runpy.run_path(str(ROOT / 'mmvanilla' / 'version.py'))['__version__']
# A package index has neither pictures nor pages of the clone.
readme = (ROOT / 'README.md').read_text(encoding='utf-8')
readme = re.sub(r'!\[[^]]*\]\((?!http)[^)]*\)\n*', '', readme)
readme = re.sub(r'\[([^]]*)\]\((?!http)[^)]*\)', r'\1', readme)

# scikit-learn brings the digits. OneDL's and the original OpenMMLab releases
# share their import names, so neither is required by default: installing one
# over the other breaks both.
digits = ['scikit-learn>=1.4']
onedl = ['onedl-mmpretrain>=1.3.6', 'onedl-mmengine>=0.10.12',
         'onedl-mmcv>=2.3.6', *digits]
openmmlab = ['mmpretrain>=1.2.0', 'mmengine>=0.10.7', 'mmcv-lite>=2.1.0',
             *digits]
downstream = ['onedl-mmdetection>=3.5.1', 'onedl-mmsegmentation>=1.4.2',
              'ftfy']
export = ['onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf']
tests = ['pytest', 'pytest-xdist', 'tensorboard', 'timm']
docs = ['sphinx', 'myst-parser', 'furo', 'nbclient', 'ipykernel']


class BuildWithMim(build_py):
    """Put configs and tools into `.mim`, where OpenMMLab looks for them.

    A wheel gets copies, an editable install gets links.
    """

    def run(self):
        super().run()
        mim = Path(self.build_lib) / 'mmvanilla' / '.mim'
        if self.editable_mode:
            mim = ROOT / 'mmvanilla' / '.mim'
            shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True, exist_ok=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:
                (mim / name).symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name,
                    mim / name,
                    ignore=shutil.ignore_patterns('__pycache__'),
                    dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, mim)


setup(
    name='mmvanilla',
    version=version,
    description='VanillaNet for the OpenMMLab toolboxes',
    long_description=readme,
    long_description_content_type='text/markdown',
    author='mmvanilla authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    project_urls={
        'Paper': 'https://arxiv.org/abs/2305.12972',
        "Authors' code": 'https://github.com/huawei-noah/VanillaNet',
    },
    keywords=['VanillaNet', 'reparameterization', 'OpenMMLab', 'mmpretrain'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmvanilla*']),
    entry_points=dict(console_scripts=[
        'mmvanilla-predict=mmvanilla.engine.predict:main']),
    # The floors are the oldest releases that the tests passed with.
    install_requires=[
        'matplotlib>=3.8', 'numpy>=1.26', 'packaging>=23', 'rich>=13.7',
        'torch>=2.10', 'torchvision>=0.25'
    ],
    extras_require={
        'onedl': onedl,
        'onedl-downstream': onedl + downstream,
        'openmmlab': openmmlab,
        'export': export,
        'tests': tests,
        'docs': docs,
        'dev': tests + docs + ['build', 'pre-commit', 'ruff'],
    },
    cmdclass={'build_py': BuildWithMim})
