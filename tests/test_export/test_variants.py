# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Every published variant, 1/64 as wide, on every way out of train form.

A compilation takes most of a minute, so those of all variants run where
MMVANILLA_SLOW_TESTS is set.
"""
import os

import pytest
import torch
from narrow import NARROW_ARCHS, randomize, relative_error

from mmvanilla.export import optimize_for_inference
from mmvanilla.export.backends import open_exported, write
from mmvanilla.export.network import Network
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead

slow = pytest.mark.skipif(
    'MMVANILLA_SLOW_TESTS' not in os.environ,
    reason='compiles; set MMVANILLA_SLOW_TESTS to run it')


@pytest.mark.parametrize('way', [
    'pt2', 'eager',
    pytest.param('aoti', marks=slow),
    pytest.param('inductor', marks=slow)
])
@pytest.mark.parametrize('arch', NARROW_ARCHS)
def test_outputs_are_those_of_the_train_form(arch, way, tmp_path):
    width = NARROW_ARCHS[arch]['dims'][-1]
    net = randomize(
        Network(VanillaNet(NARROW_ARCHS[arch]), VanillaNetHead(10, width)))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        reference = net(x)
        switch_to_deploy(net)
        if way in ('pt2', 'aoti'):
            write(net, x, tmp_path / 'net.pt2', way)
            run = open_exported(tmp_path / 'net.pt2', way)
        else:
            torch._dynamo.reset()
            run = optimize_for_inference(net, x, way)
        assert relative_error(run(x), reference) < 1e-5
