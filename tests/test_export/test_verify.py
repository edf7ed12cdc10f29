# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A file whose outputs are not those of the network is refused."""

import pytest
import torch
from narrow import (
    NARROW_ARCHS,
    classifier,
    mutated,
    negated,
    not_a_number,
    samples,
    vanillanet,
)
from torch import nn

from mmvanilla.export.network import Network
from mmvanilla.export.verify import verify
from mmvanilla.utils.errors import UserError


def test_rounded_classifiers_are_judged_by_predictions():
    net = classifier()
    inputs, labels = samples(net, 40)
    for mutation in (negated, not_a_number):
        for precision in ('bf16', 'int8'):
            with pytest.raises(UserError, match='comparing the exported file'):
                verify(net, mutated(net, mutation), inputs, labels, precision)

    def rounded(x):
        return [net(x)[0] * 1.05]

    assert verify(net, rounded, inputs, labels, 'int8').agreement == 1

    # The sample whose two first classes are closest gets them swapped: one
    # of 40 is 2.5 points.
    with torch.no_grad():
        margins = torch.stack([
            net(x)[0].topk(2).values.diff().abs().squeeze() for x in inputs])
    closest = inputs[margins.argmin()]

    def one_wrong(x):
        out = net(x)[0].clone()
        if torch.equal(x, closest):
            out[:, out.topk(2).indices[0]] = out.topk(2).values.flip(1)
        return [out]

    with pytest.raises(UserError, match='by 2.50 points, from 100.00 %'):
        verify(net, one_wrong, inputs, labels, 'int8')
    found = verify(net, one_wrong, inputs, labels, 'int8', max_drop=3)
    assert found.accuracy == dict(before=100, after=97.5)
    found = verify(net, one_wrong, inputs, [None] * 40, 'int8')
    assert found.agreement == 39 / 40 and not found.accuracy
    with pytest.raises(UserError, match='for 2.50 % of 40 samples'):
        verify(net, one_wrong, inputs, [None] * 40, 'bf16')


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'int8'])
def test_feature_maps_have_a_limit_in_every_precision(precision):
    backbone = vanillanet(NARROW_ARCHS['5'], out_indices=(0, 2))
    net = Network(backbone, num_outputs=2)
    inputs, labels = samples(net, 3)
    verify(net, net, inputs, labels, precision)

    def second_is_negated(x):
        first, second = net(x)
        return [first, -second]

    with pytest.raises(UserError, match='feature_1 of sample 1'):
        verify(net, second_is_negated, inputs, labels, precision)
    with pytest.raises(UserError, match='has 1 outputs, not 2'):
        verify(net, lambda x: net(x)[:1], inputs, labels, precision)


@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_comparing_nothing_fails(precision):
    net = classifier()
    inputs, labels = samples(net, 3)
    with pytest.raises(UserError, match='no outputs were compared'):
        verify(net, net, [], [], precision)
    nn.init.zeros_(net.head.classifier.weight)
    with pytest.raises(UserError, match='the same for all samples'):
        verify(net, net, inputs, labels, precision)
