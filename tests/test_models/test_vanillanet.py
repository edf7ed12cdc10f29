# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
import torch.nn.functional as F
from golden import build_classifier, load, relative_l2
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.checkpoints import from_authors
from mmvanilla.layers import (
    DeepTrainingConv2d,
    SeriesActivation,
    set_lam,
    switch_to_deploy,
)
from mmvanilla.models import VanillaNet

GOLDEN = ['plain', 'act4_deep', 'ada_pool']
TINY = dict(dims=[4, 8, 8, 12], strides=[2, 1, 2])

# Parameters and MACs in deploy form and in train form, counted
# on the code that the authors released.
VARIANTS = {
    '5': (15_523_304, 5_161_185_280, 22_328_800, 8_450_519_616),
    '6': (32_509_416, 5_993_103_360, 56_116_704, 10_104_521_280),
    '7': (32_797_672, 6_893_862_912, 56_670_176, 11_827_364_416),
    '8': (37_096_424, 7_735_615_488, 65_175_520, 13_491_200_576),
    '9': (41_395_176, 8_577_368_064, 73_680_864, 15_155_036_736),
    '10': (45_693_928, 9_419_120_640, 82_186_208, 16_818_872_896),
    '11': (49_992_680, 10_260_873_216, 90_691_552, 18_482_709_056),
    '12': (54_291_432, 11_102_625_792, 99_196_896, 20_146_545_216),
    '13': (58_590_184, 11_944_378_368, 107_702_240, 21_810_381_376),
    '13-x1.5': (127_796_200, 26_548_445_184, 236_942_048, 48_745_701_952),
    '13-x1.5-ada': (127_796_200, 48_982_528_512, 236_942_048, 89_966_269_504),
}


def classifier(arch, deploy: bool = False) -> ImageClassifier:
    if isinstance(arch, str):
        arch = VanillaNet.arch_settings[arch]
    width = arch['dims'][-1]
    return ImageClassifier(
        dict(type='VanillaNet', arch=arch, deploy=deploy),
        head=dict(
            type='VanillaNetHead',
            num_classes=1000,
            in_channels=width,
            deploy=deploy)).eval()


# ------------------------------------------------ against the authors' code


@pytest.mark.parametrize('name', GOLDEN)
def test_eval_at_each_lambda(name):
    golden = load(name)
    model = build_classifier(golden)
    stages = tuple(range(len(golden['kwargs']['strides'])))
    model.backbone.out_indices = stages
    for lam, expected in golden['eval'].items():
        set_lam(model, lam)
        with torch.no_grad():
            logits = model(golden['input'])
            outs = model.backbone(golden['input'])
            stem = model.backbone.stem(golden['input'])
        assert relative_l2(logits, expected['logits']) < 1e-5
        if lam == 0.37:
            assert relative_l2(stem, expected['stem']) < 1e-5
            assert len(outs) == len(expected['stages'])
            for out, stage in zip(outs, expected['stages']):
                assert relative_l2(out, stage) < 1e-5


@pytest.mark.parametrize('name', GOLDEN)
def test_deploy_form(name):
    golden = load(name)
    model = build_classifier(golden, deploy=True)
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, golden['deploy']['logits']) < 1e-5


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-6),
                                        (torch.float32, 1e-4)])
@pytest.mark.parametrize('name', GOLDEN)
def test_train_step(name, dtype, tol):
    golden = load(name)
    step = golden['train']
    model = build_classifier(golden).to(dtype).train()
    set_lam(model, step['lambda'])
    logits = model(golden['input'].to(dtype))
    loss = F.binary_cross_entropy_with_logits(logits, step['target'].to(dtype))
    loss.backward()

    assert loss.item() == pytest.approx(step['loss'], rel=tol)
    assert relative_l2(logits, step['logits']) < tol
    # In place of the weights and buffers that they are of, they are renamed
    # with them.
    theirs = golden['state_dict']
    expected = from_authors({**theirs, **step['grads']})
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert len(grads) == len(step['grads'])
    # Whole, since a bias before a norm has a gradient of rounding alone.
    assert relative_l2(
        torch.cat([grads[k].flatten() for k in grads]),
        torch.cat([expected[k].flatten() for k in grads])) < tol
    expected = from_authors({**theirs, **step['buffers_after']})
    buffers = dict(model.named_buffers())
    assert len(buffers) == len(step['buffers_after'])
    for key, buffer in buffers.items():
        assert relative_l2(buffer, expected[key]) < tol, key


@pytest.mark.parametrize('name', GOLDEN)
def test_float32_merge_against_float64(name):
    golden = load(name)
    model = build_classifier(golden)
    switch_to_deploy(model)
    with torch.no_grad():
        logits = model(golden['input'])
    assert relative_l2(logits, golden['logits_float64_lambda1']) < 1e-6


# --------------------------------------------------------------- all variants


@pytest.mark.parametrize('arch', VARIANTS)
def test_parameters_and_macs(arch):
    params, macs, train_params, train_macs = VARIANTS[arch]
    for deploy, expected in [(True, (params, macs)),
                             (False, (train_params, train_macs))]:
        with torch.device('meta'):
            model = classifier(arch, deploy)
            image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(image)
        size = sum(p.numel() for p in model.parameters())
        assert (size, counter.get_total_flops() // 2) == expected


@pytest.mark.parametrize('arch', [
    arch if arch in ('5', '6', '13') else pytest.param(
        arch, marks=pytest.mark.slow) for arch in VARIANTS
])
def test_full_width_merges(arch):
    torch.manual_seed(0)
    settings = VanillaNet.arch_settings[arch]
    if 'ada_pool' in settings:
        # The widths are the same, at a tenth of the pixels.
        settings = dict(settings, ada_pool=[0, 4, 2, *[0] * 6, 1, 0])
    with torch.device('meta'):
        model = classifier(settings)
    model.to_empty(device='cpu')
    # Weights that keep the signal's size on its way, and statistics that are
    # not 0 and 1.
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(std=tensor[0].numel()**-0.5)
        elif name.endswith(('running_var', 'norm1.weight', 'norm2.weight',
                            'norm.weight')):
            tensor.uniform_(0.5, 1.5)
        elif not name.endswith(('.lam', 'num_batches_tracked')):
            tensor.normal_(std=0.1)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(image.double())
        assert switch_to_deploy(model) == 2 * model.backbone.num_stages + 3
        assert relative_l2(model(image), expected) < 1e-5
    state = model.state_dict()
    assert all(v.is_contiguous() and v.dtype == torch.float32
               for v in state.values())
    assert model.backbone.deploy and model.head.deploy
    with torch.device('meta'):
        built = classifier(settings, deploy=True)
    built.load_state_dict(state, strict=True, assign=True)
    assert switch_to_deploy(model) == 0
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


# ------------------------------------------------------------------ arguments


def test_registered():
    for name in ('VanillaNet', 'VanillaNetHead', 'DeepTrainingConv2d',
                 'DeepTrainingActivation', 'SeriesActivation'):
        assert MODELS.get(name) is not None
    assert MODELS.get('mmpretrain.VanillaNet') is VanillaNet


def test_initialization():
    net = VanillaNet(dict(dims=[64, 96, 96], strides=[1, 2]))
    net.init_weights()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4:
            # Cut off at 2, that is at 100 standard deviations.
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002
        elif name.endswith('weight'):
            assert (parameter == 1).all(), name
        else:
            assert (parameter == 0).all(), name


def test_initialization_can_be_replaced():
    net = VanillaNet(
        TINY, init_cfg=dict(type='Constant', layer='Conv2d', val=3))
    net.init_weights()
    assert (net.stem.conv.conv1.weight == 3).all()
    assert (net.stages[0].conv.conv2.weight == 3).all()


def test_pretrained_backbone(tmp_path):
    source = VanillaNet(TINY)
    set_lam(source, 0.25)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'source.pth')
    net = VanillaNet(
        TINY,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'source.pth'),
            prefix='backbone.'))
    net.init_weights()
    assert net.stages[1].conv.lam == 0.25
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_out_indices():
    net = VanillaNet(TINY, out_indices=(0, -1)).eval()
    outs = net(torch.rand(1, 3, 32, 32))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [(1, 8, 4, 4), (1, 12, 2, 2)]
    assert len(VanillaNet(TINY)(torch.rand(2, 3, 32, 32))) == 1


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages(frozen_stages):
    net = VanillaNet(TINY, frozen_stages=frozen_stages)
    net.train()
    parts = [net.stem, *net.stages]
    for i, part in enumerate(parts):
        frozen = i <= frozen_stages
        assert all(p.requires_grad != frozen for p in part.parameters())
        assert all(m.training != frozen for m in part.modules())


def test_norm_eval():
    net = VanillaNet(TINY, norm_eval=True)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(torch.rand(2, 3, 32, 32))
    assert net.training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize('act', ['Tanh', 'GELU'])
def test_other_activations_merge(act):
    net = VanillaNet(TINY, act_cfg=dict(type=act)).double().eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = net(x)[0]
    net.switch_to_deploy()
    torch.testing.assert_close(net(x)[0], expected)


def test_other_input_channels_and_act_num():
    net = VanillaNet(TINY, in_channels=1, act_num=1)
    assert net(torch.rand(2, 1, 32, 32))[0].shape == (2, 12, 2, 2)
    assert net.stem.act.conv.weight.shape == (4, 1, 3, 3)


def test_every_layer_is_reparameterizable():
    net = VanillaNet(TINY)
    layers = [net.stem, *net.stages]
    assert all(isinstance(x.conv, DeepTrainingConv2d) for x in layers)
    assert all(isinstance(x.act, SeriesActivation) for x in layers)
    assert [x.conv.conv1.out_channels for x in layers] == [4, 4, 8, 8]


def test_layer_depth():
    net = VanillaNet('6')
    depth = {
        name: net.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in net.named_parameters()
    }
    assert {d for _, d in depth.values()} == {6}
    assert depth['stem.act.conv.weight'][0] == 0
    assert depth['stages.0.conv.conv1.weight'][0] == 1
    assert depth['stages.3.act.norm.bias'][0] == 4
    head = net.get_layer_depth('head.classifier.conv1.weight', 'backbone.')
    assert head == (5, 6)


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='4'), "one of 5, 6.*got \"4\""),
    (dict(arch=dict(dims=[4, 8])), 'dims, strides'),
    (dict(arch=dict(dims=[4, 8], strides=[2], depth=3)), 'dims, strides'),
    (dict(arch=dict(dims=[4, 8], strides=[2, 1])), '2 dims and 2 strides'),
    (dict(arch=dict(dims=[4, 8], strides=[3])), '1 or 2'),
    (dict(arch=dict(dims=[4, 8], strides=[2], ada_pool=[0])), 'ada_pool'),
    (dict(arch=TINY, out_indices=(3, )), 'from -3 to 2, but got 3'),
    (dict(arch=TINY, out_indices=(0, 2, -1)),
     r'each stage once, but got \(0, 2, -1\), which are .* \[0, 2, 2\] of 3'),
    (dict(arch=TINY, out_indices=(-4, )), 'from -3 to 2, but got -4'),
    (dict(arch=TINY, frozen_stages=4), 'from -1 to 3, but got 4'),
])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VanillaNet(**kwargs)
