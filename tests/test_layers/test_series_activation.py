# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from mmcv.cnn import ConvModule
from narrow import randomize
from torch import nn

from mmvanilla.layers import SeriesActivation


def by_definition(x, weight, n, base):
    """The sum of the paper's equation, position by position."""
    activated = nn.functional.pad(base(x), (n, n, n, n))
    height, width = x.shape[2:]
    return sum(
        weight[:, 0, i, j, None, None]
        * activated[:, :, i:i + height, j:j + width]
        for i in range(2 * n + 1) for j in range(2 * n + 1))


@pytest.mark.parametrize('n, name, base', [
    (0, 'ReLU', torch.relu), (1, 'Tanh', torch.tanh),
    (3, 'GELU', nn.functional.gelu)])
def test_both_forms_against_the_definition(n, name, base):
    kwargs = dict(num_channels=5, act_num=n, act_cfg=dict(type=name))
    act = randomize(SeriesActivation(**kwargs)).double()
    assert act.conv.weight.shape == (5, 1, 2 * n + 1, 2 * n + 1)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    expected = act.norm(by_definition(x, act.conv.weight, n, base))
    torch.testing.assert_close(act(x), expected)

    states = [act.state_dict()]
    act.switch_to_deploy()
    torch.testing.assert_close(act(x), expected)
    weight = act.conv.weight
    act.switch_to_deploy()
    assert act.conv.weight is weight and type(act.conv) is nn.Conv2d
    for state in (*states, act.state_dict()):
        built = SeriesActivation(**kwargs, deploy=True).double()
        built.load_state_dict(state, strict=True)
        torch.testing.assert_close(built(x), expected)


def test_loading_of_an_activation_with_weights():
    kwargs = dict(num_channels=4, act_num=1, act_cfg=dict(type='PReLU'))
    act = randomize(SeriesActivation(**kwargs))
    act.act.weight.data.fill_(-0.7)
    built = SeriesActivation(**kwargs, deploy=True)
    built.load_state_dict(act.state_dict(), strict=True)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(built(x), act(x))
    with pytest.raises(RuntimeError, match='deploy form.*with deploy=True'):
        act.load_state_dict(built.state_dict())


def test_start_as_an_activation():
    act = SeriesActivation(4)
    act.start_as(nn.Hardswish())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(act.eval()(x), nn.Hardswish()(x))


def test_refusals():
    for kwargs, message in [
            (dict(act_num=-1), 'must not be negative, got -1'),
            (dict(norm_cfg=None), 'got None'),
            (dict(norm_cfg=dict(type='GN', num_groups=2)),
             'must be a batch norm')]:
        with pytest.raises(ValueError, match=message):
            SeriesActivation(4, **kwargs)
    with pytest.raises(ValueError, match='num_channels.*WithDeepTraining'):
        ConvModule(3, 8, 3, act_cfg=dict(type='SeriesActivation'))
    with pytest.raises(RuntimeError, match='4 channels.*got 5'):
        SeriesActivation(4)(torch.randn(1, 5, 6, 6))
