# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What hooks keep of a network of these layers, in each form."""
import pytest
import torch
from narrow import TINY, randomize
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook
from torchvision.models.feature_extraction import create_feature_extractor

from mmvanilla.layers import (
    DeepTrainingActivation,
    SeriesActivation,
    set_lam,
    switch_to_deploy,
    switch_to_finetune,
)
from mmvanilla.models import VanillaNet
from mmvanilla.reparam import add_deep_training

FORMS = dict(train=lambda net: set_lam(net, 0.3), finetune=switch_to_finetune,
             deploy=switch_to_deploy)


def vanillanet(act_cfg=dict(type='ReLU')) -> nn.Module:
    net = VanillaNet(TINY, out_indices=(0, 1, 2), act_cfg=act_cfg)
    return randomize(net).double()


def vgg() -> nn.Module:
    """Activations that work in place on the output of a convolution."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3),
        nn.LeakyReLU(0.2, inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1))
    add_deep_training(net, input_shape=(3, 16, 16))
    return randomize(net).double()


@pytest.fixture(params=[
    vanillanet, vgg,
    lambda: vanillanet(dict(type='HSwish', inplace=True)),
    lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), DeepTrainingActivation(inplace=True),
        SeriesActivation(4, inplace=True)).double()])
def network(request) -> nn.Module:
    return request.param()


def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32).double()


def total(outputs) -> torch.Tensor:
    outputs = outputs if isinstance(outputs, tuple) else (outputs, )
    return sum((out**3).sum() for out in outputs)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('mode', [True, False])
def test_nothing_that_a_hook_kept_is_overwritten(network, form, mode):
    FORMS[form](network)
    network.train(mode)
    kept = []

    def keep(module, inputs, outputs):
        tensors = [*inputs, *(outputs if isinstance(outputs, tuple)
                              else [outputs])]
        kept.extend((x, x.detach().clone()) for x in tensors)

    hook = register_module_forward_hook(keep)
    try:
        with torch.set_grad_enabled(mode):
            network(images())
    finally:
        hook.remove()
    assert len(kept) > 6
    assert all(torch.equal(x, before) for x, before in kept)


@pytest.mark.parametrize('form', FORMS)
def test_backward_hooks_get_the_gradients_of_each_output(network, form):
    """As Grad-CAM does; the reference differentiates without such hooks."""
    FORMS[form](network)
    network.train()
    outputs, gradients = {}, {}
    hooks = [module.register_forward_hook(
        lambda module, _, out: outputs.update({module: out}))
        for module in network.modules()]
    loss = total(network(images()))
    outputs = {k: v for k, v in outputs.items() if not isinstance(v, tuple)}
    expected = dict(zip(
        outputs, torch.autograd.grad(loss, [*outputs.values()])))
    for hook in hooks:
        hook.remove()
    for module in network.modules():
        module.register_full_backward_hook(
            lambda module, _, grads: gradients.update({module: grads[0]}))
    total(network(images())).backward()
    assert len(expected) > 5 and expected.keys() <= gradients.keys()
    for module, gradient in expected.items():
        torch.testing.assert_close(gradients[module], gradient)


@pytest.mark.parametrize('form', FORMS)
def test_memory_in_training(form):
    """Only what convolutions, norms and poolings need is stored."""
    net = vanillanet()
    FORMS[form](net)
    net.train()
    needed, saved = {}, {}

    def add(found):
        # The tensors are held, lest another gets their memory.
        return lambda x: found.setdefault(x.untyped_storage().data_ptr(), x)

    def keep(module, inputs, outputs):
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)):
            add(needed)(inputs[0])

    hook = register_module_forward_hook(keep)
    try:
        with saved_tensors_hooks(lambda x: (add(saved)(x), x)[1], lambda x: x):
            net(images())
    finally:
        hook.remove()
    maps = {k for k, x in saved.items() if x.dim() == 4 and not (
        isinstance(x, nn.Parameter) or x.dtype == torch.int64)}
    assert maps <= needed.keys() and len(maps) > 8


def test_features_by_name():
    net = vanillanet().eval()
    names = ['stem.conv.norm1', 'stem.conv.act', 'stages.0.pool',
             'stages.1.conv.norm2', 'stages.1.act.act', 'stages.2.act']
    expected = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda m, _, out, name=name: expected.update({name: out.clone()}))
    x = images()
    net(x)
    found = create_feature_extractor(vanillanet().eval(), names)(x)
    for name in names:
        assert torch.equal(found[name], expected[name]), name


def test_second_derivatives_and_transforms():
    act = DeepTrainingActivation()
    act.lam = 0.3
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: act(x)**3, x)
    slope = torch.where(x > 0, 1, 0.3).double()
    y, tangent = torch.func.jvp(act, (x, ), (torch.ones_like(x), ))
    torch.testing.assert_close(tangent, slope)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(
        lambda x: act(x).sum()))(x), slope)
