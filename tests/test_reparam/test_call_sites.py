# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Blocks that call one activation at several places."""
import copy
import functools
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden import relative_l2
from mmpretrain.models.backbones import ResNet
from torch import nn

from mmvanilla.layers import SeriesActivation, switch_to_deploy
from mmvanilla.reparam import add_deep_training
from mmvanilla.reparam.call_sites import CannotSplit, split_call_sites

SHAPE = (3, 16, 16)


def narrow(depth: int, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    network = ResNet(
        depth, base_channels=4, stem_channels=4, deep_stem=False, **kwargs)
    add_deep_training(
        network,
        convs=None,
        act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=SHAPE)
    # Series that differ, so that the outputs tell one from another.
    for module in network.modules():
        if isinstance(module, SeriesActivation):
            with torch.no_grad():
                module.conv.weight.add_(
                    0.3 * torch.randn_like(module.conv.weight))
    network.eval()
    return network


def changed(block: nn.Module, **kwargs):
    done = add_deep_training(
        block, convs=None, act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=(4, 8, 8), **kwargs)
    for module in block.modules():
        if isinstance(module, SeriesActivation):
            nn.init.normal_(module.conv.weight)
    return done


# ------------------------------------------------------ threads, recomputation


@pytest.mark.parametrize('depth', [18, 50])
def test_threads_get_the_outputs_of_one(depth):
    network = narrow(depth, out_indices=(0, 1, 2, 3))
    switch_to_deploy(network)
    images = torch.randn(500, *SHAPE).split(1)

    def run(image):
        with torch.no_grad():
            return network(image)

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(run, images))
    assert sum(map(len, outputs)) == 2000
    for image, output in zip(images, outputs):
        assert all(map(torch.equal, run(image), output))
    assert not any(map(torch.equal, outputs[0], outputs[1]))


@pytest.mark.parametrize('depth', [18, 50])
def test_recomputation_gets_the_gradients(depth):
    grads = []
    for with_cp in (False, True):
        network = narrow(depth, with_cp=with_cp).double()
        network.train()
        torch.manual_seed(1)
        # Two forward passes, then one backward pass through both.
        outputs = [network(torch.randn(2, 3, 32, 32, dtype=torch.double))[0]
                   for _ in range(2)]
        (outputs[0].square().mean() + outputs[1].square().mean()).backward()
        grads.append({n: p.grad for n, p in network.named_parameters()})
    assert all(grad.abs().sum() > 0 for name, grad in grads[0].items()
               if 'act' not in name and name.endswith('conv.weight'))
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


# ------------------------------------------------------------- kinds of blocks


class Base(nn.Module):

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()
        self.first = nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)

    def last(self, x, scale=torch.tensor(2.0), *, shift: float = 1.0):
        return self.act(self.second(x)) * scale + shift


def block_class():
    offset = 3.0  # a name from outside of the class

    class Block(Base):

        def forward(self, x):
            if self.act is not None:
                x = self.act(self.act(self.first(x)) + offset)

            def inner(x):
                return self.act(x)

            return super().last(inner(x))

        def last(self, x):
            raise NotImplementedError

    return Block


def test_nested_calls_closures_and_super():
    """``last`` is that of the base, where the activation would stay."""
    block = block_class()().eval()
    x = torch.randn(2, 4, 8, 8)
    expected = block(x)
    done = changed(block)
    assert done.acts == [] and 'not once at each place' in done.skipped['act']
    assert type(block.act) is nn.Tanh
    assert torch.equal(block(x), expected)
    assert not hasattr(block, 'act_1')


class Whole(Base):

    def forward(self, x):
        if self.act is not None:
            x = self.act(self.act(self.first(x)) + OFFSET)

        def inner(x):
            return self.act(x)

        return self.last(inner(x), shift=0.5)

    def __call__(self, *args):
        return super().__call__(*args)


OFFSET = 3.0


def test_each_call_site_has_its_own():
    block = Whole().eval()
    x = torch.randn(2, 4, 8, 8)
    before = block(x)
    done = add_deep_training(
        block, convs=None, act_cfg=dict(type='SeriesActivation', act_num=1),
        input_shape=(4, 8, 8))
    assert sorted(done.acts) == ['act_1', 'act_2', 'act_3', 'act_4']
    assert relative_l2(block(x), before) < 1e-6
    assert isinstance(block, Whole) and type(block).__name__ == 'Whole'
    for i, act in enumerate(
            m for m in block.modules() if isinstance(m, SeriesActivation)):
        nn.init.constant_(act.norm.bias, i + 1.0)
    # By the order in which they stand in the source.
    a, b, c, d = (getattr(block, f'act_{i}') for i in (1, 2, 3, 4))
    expected = d(block.second(c(a(b(block.first(x)) + OFFSET)))) * 2 + 0.5
    torch.testing.assert_close(block(x), expected)


def test_copies_and_pickles():
    block = Whole().eval()
    changed(block)
    x = torch.randn(2, 4, 8, 8)
    expected = block(x)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert type(other) is type(block)
        assert torch.equal(other(x), expected)
        nn.init.zeros_(other.act_2.conv.weight)
        assert not torch.equal(other(x), expected)
    assert torch.equal(block(x), expected)


def test_an_error_in_between_changes_nothing():
    block = Whole().eval()
    changed(block)
    x = torch.randn(2, 4, 8, 8)
    expected = block(x)
    second = block.second
    block.second = nn.Conv2d(5, 4, 1)
    with pytest.raises(RuntimeError):
        block(x)
    block.second = second
    assert torch.equal(block(x), expected)


def test_captured():
    block = Whole().eval()
    changed(block)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = block(x)
        compiled = torch.compile(block, backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(block, (x, )).module()
        torch.testing.assert_close(exported(x), expected)
        traced = torch.fx.symbolic_trace(block)
        torch.testing.assert_close(traced(x), expected)


class Loop(Base):

    def forward(self, x):
        for conv in (self.first, self.second):
            x = self.act(conv(x))
        return x


class Passed(Base):

    def forward(self, x):
        x = self.act(self.first(x))
        return functools.reduce(lambda y, f: f(y), [self.act, self.second], x)


class OnlyInTraining(Base):

    def forward(self, x):
        x = self.act(self.second(self.act(self.first(x))))
        return self.act(x) if self.training else x


def wrapped(method):

    @functools.wraps(method)
    def wrapper(*args):
        return method(*args)

    return wrapper


class Decorated(Base):

    @wrapped
    def forward(self, x):
        return self.act(self.second(self.act(self.first(x))))


class Taken(Base):

    def __init__(self):
        super().__init__()
        self.act_2 = nn.Sigmoid()

    def forward(self, x):
        return self.act_2(self.act(self.second(self.act(self.first(x)))))


source = '''
class Typed(Base):
    def forward(self, x):
        return self.act(self.second(self.act(self.first(x))))
'''
typed = dict(Base=Base, __name__=__name__)
exec(source, typed)
# As of a file that was edited after its import.
edited = dict(Base=Base, __name__=__name__)
exec(compile(source, __file__, 'exec'), edited)


@pytest.mark.parametrize('kind, reason', [
    (Loop, 'not once at each place'),
    (Passed, 'in another way than calling it'),
    (OnlyInTraining, 'not once at each place'),
    (Decorated, 'not once at each place'),
    (Taken, 'has another "act_2" already'),
    (typed['Typed'], r'source of Typed.forward\(\) cannot be read'),
    (edited['Typed'], r'source of Typed.forward\(\) is not the code'),
], ids=lambda value: getattr(value, '__name__', None))
def test_what_cannot_be_told_apart_stays(kind, reason):
    block = kind().eval()
    before = str(block)
    x = torch.randn(2, 4, 8, 8)
    expected = block(x)
    done = changed(block, acts='act')
    assert done.acts == []
    assert list(done.skipped) == ['act']
    assert re.search(reason, done.skipped['act']), done.skipped
    assert type(block) is kind and str(block) == before
    assert torch.equal(block(x), expected)


class Two(nn.Module):
    """Two activations, each called twice, in two steps."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.ReLU(), nn.PReLU()

    def forward(self, x):
        return self.b(self.a(self.b(self.a(x))))


def test_one_block_changed_twice():
    block = Two().eval()
    x = torch.randn(2, 4, 8, 8)
    expected = block(x)
    changed_acts = []
    for acts in ('a', 'b'):
        done = add_deep_training(
            block, None, acts, input_shape=(4, 8, 8),
            act_cfg=dict(type='SeriesActivation', act_num=1))
        changed_acts += done.acts
    assert sorted(changed_acts) == ['a_1', 'a_2', 'b_1', 'b_2']
    assert relative_l2(block(x), expected) < 1e-6
    # One PReLU had one slope.
    assert block.b_1.act.weight is block.b_2.act.weight
    both = Two()
    changed(both)
    assert {n for n, _ in both.named_modules()} == {
        n for n, _ in block.named_modules()}


def test_no_source():
    with pytest.raises(CannotSplit):
        split_call_sites(typed['Typed'], ('act', ))
