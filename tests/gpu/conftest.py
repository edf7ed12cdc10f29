# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Tests on a GPU. Where there is none, their files are skipped unread.

With MMVANILLA_GPU_TESTS_ON_CPU=1 they run on a CPU, as far as it can, which
tests the tests.
"""
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
REASON = 'no CUDA device'
# What deterministic products need; read when the first one is computed.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


class SkippedFile(pytest.Module):
    """A file of tests that is not imported."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if not HAS_GPU and os.environ.get('MMVANILLA_GPU_TESTS_ON_CPU') != '1':
        return SkippedFile.from_parent(parent, path=module_path)


def pytest_terminal_summary(terminalreporter):
    """Print what the tests measured."""
    stats = terminalreporter.stats
    for report in stats.get('passed', []) + stats.get('failed', []):
        for name, value in report.user_properties:
            terminalreporter.write_line(
                f'{report.nodeid.rpartition("/")[2]}: {name} {value}')


@pytest.fixture
def device() -> str:
    return 'cuda' if HAS_GPU else 'cpu'


@pytest.fixture(autouse=True)
def plain_float32():
    """Convolutions in float32 without TF32, chosen in one way."""
    cudnn = torch.backends.cudnn
    names = ('allow_tf32', 'benchmark', 'deterministic')
    before = [getattr(cudnn, name) for name in names]
    for name, value in zip(names, (False, False, True)):
        setattr(cudnn, name, value)
    yield
    for name, value in zip(names, before):
        setattr(cudnn, name, value)
