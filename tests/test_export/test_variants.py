# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Every published variant, 1/64 as wide, exported and optimized."""
import pytest
import torch
from narrow import NARROW_ARCHS, randomize, relative_error

from mmvanilla.export import optimize_for_inference
from mmvanilla.export.exported import Exported
from mmvanilla.export.formats import write
from mmvanilla.export.network import Network
from mmvanilla.layers import switch_to_deploy
from mmvanilla.models import VanillaNet, VanillaNetHead


@pytest.mark.parametrize('way', ['pt2', 'eager'])
@pytest.mark.parametrize('arch', NARROW_ARCHS)
def test_outputs_are_those_of_the_train_form(arch, way, tmp_path):
    width = NARROW_ARCHS[arch]['dims'][-1]
    net = randomize(
        Network(VanillaNet(NARROW_ARCHS[arch]), VanillaNetHead(10, width)))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        reference = net(x)
        switch_to_deploy(net)
        if way == 'pt2':
            write(net, x, tmp_path / 'net.pt2', way)
            run = Exported(tmp_path / 'net.pt2')
        else:
            run = optimize_for_inference(net, x, way)
        assert relative_error(run(x), reference) < 1e-5
