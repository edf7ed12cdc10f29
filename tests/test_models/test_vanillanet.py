# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
import torch.nn.functional as F
from golden import build_classifier, load, relative_l2
from mmpretrain.models import ImageClassifier
from narrow import randomize
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.checkpoints import from_authors
from mmvanilla.layers import set_lam, switch_to_deploy
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


def classifier(arch: str, deploy: bool = False) -> ImageClassifier:
    width = VanillaNet.arch_settings[arch]['dims'][-1]
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
    built, merged = build_classifier(golden, True), build_classifier(golden)
    switch_to_deploy(merged)
    with torch.no_grad():
        assert relative_l2(
            built(golden['input']), golden['deploy']['logits']) < 1e-5
        assert relative_l2(
            merged(golden['input']), golden['logits_float64_lambda1']) < 1e-6


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
    '5', pytest.param('13-x1.5', marks=pytest.mark.slow)])
def test_full_width_merges(arch):
    with torch.device('meta'):
        model = classifier(arch)
    randomize(model.to_empty(device='cpu'))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(image.double())
        assert switch_to_deploy(model) == 2 * model.backbone.num_stages + 3
        assert relative_l2(model(image), expected) < 1e-5
    state = model.state_dict()
    assert all(v.is_contiguous() and v.dtype == torch.float32
               for v in state.values())
    with torch.device('meta'):
        built = classifier(arch, deploy=True)
    built.load_state_dict(state, strict=True, assign=True)


# ------------------------------------------------------------------ arguments


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


@pytest.mark.parametrize('form', [
    dict(), dict(deep_training=False), dict(deploy=True)], ids=str)
def test_pretrained_backbone(form, tmp_path):
    source = randomize(VanillaNet(TINY))
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'source.pth')
    net = VanillaNet(
        TINY,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'source.pth'),
            prefix='backbone.'),
        **form)
    net.init_weights()
    x = torch.rand(2, 3, 32, 32)
    assert relative_l2(net.eval()(x)[0], source(x)[0]) < 1e-5


def test_out_indices():
    net = VanillaNet(TINY, out_indices=(0, -1)).eval()
    outs = net(torch.rand(1, 3, 32, 32))
    assert [tuple(out.shape) for out in outs] == [(1, 8, 4, 4), (1, 12, 2, 2)]


def test_frozen_stages_and_norm_eval():
    net = VanillaNet(TINY, frozen_stages=0, norm_eval=True).train()
    before = copy.deepcopy(net.state_dict())
    net(torch.rand(2, 3, 32, 32))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    for frozen_stages in (-1, 2):
        net = VanillaNet(TINY, frozen_stages=frozen_stages).train()
        for i, part in enumerate([net.stem, *net.stages]):
            frozen = i <= frozen_stages
            assert all(p.requires_grad != frozen for p in part.parameters())
            assert all(m.training != frozen for m in part.modules())


def test_other_input_channels_and_act_num():
    net = VanillaNet(TINY, in_channels=1, act_num=1)
    assert net(torch.rand(2, 1, 32, 32))[0].shape == (2, 12, 2, 2)
    assert net.stem.act.conv.weight.shape == (4, 1, 3, 3)
    assert VanillaNet(5).num_stages == 3  # as --cfg-options gives it


def test_layer_depth():
    net = VanillaNet('6')
    for name, depth in [('backbone.stem.act.conv.weight', 0),
                        ('backbone.stages.0.conv.conv1.weight', 1),
                        ('backbone.stages.3.act.norm.bias', 4),
                        ('head.classifier.conv1.weight', 5)]:
        assert net.get_layer_depth(name, 'backbone.') == (depth, 6)


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch=14), r'one of 5, 6, .*, 13-x1\.5.*"14"'),
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
