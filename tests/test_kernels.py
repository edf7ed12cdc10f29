# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent / 'gpu' / 'test_kernels.py'


def test_kernels_in_the_interpreter():
    """The tests of the kernels, on a CPU; Triton is told when it starts."""
    pytest.importorskip('triton')
    env = dict(os.environ, TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='',
               MMVANILLA_GPU_TESTS_ON_CPU='1')
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
         str(FILE)], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert ' passed' in result.stdout
