# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from golden import build_classifier, load, relative_l2
from mmpretrain.models import ImageClassifier
from narrow import TINY, randomize
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.checkpoints import from_authors
from mmvanilla.layers import set_lam, switch_to_deploy
from mmvanilla.models import VanillaNet

GOLDEN = ['plain', 'act4_deep', 'ada_pool']

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


@pytest.mark.parametrize('name', GOLDEN)
@torch.no_grad()
def test_eval_at_each_lambda_and_deploy_form(name):
    golden = load(name)
    x = golden['input']
    model = build_classifier(golden)
    model.backbone.out_indices = tuple(range(model.backbone.num_stages))
    for lam, expected in golden['eval'].items():
        set_lam(model, lam)
        assert relative_l2(model(x), expected['logits']) < 1e-5
        if lam == 0.37:
            for out, stage in zip(
                    model.backbone(x), expected['stages'], strict=True):
                assert relative_l2(out, stage) < 1e-5
    set_lam(model, 1)
    switch_to_deploy(model)
    assert relative_l2(model(x), golden['logits_float64_lambda1']) < 1e-6
    built = build_classifier(golden, deploy=True)
    assert relative_l2(built(x), golden['deploy']['logits']) < 1e-5


@pytest.mark.parametrize('name', GOLDEN)
def test_train_step(name):
    golden, tol = load(name), 1e-6
    step = golden['train']
    model = build_classifier(golden).double().train()
    set_lam(model, step['lambda'])
    logits = model(golden['input'].double())
    loss = F.binary_cross_entropy_with_logits(logits, step['target'].double())
    loss.backward()
    assert loss.item() == pytest.approx(step['loss'], rel=tol)
    assert relative_l2(logits, step['logits']) < tol
    # Gradients are renamed as the weights that they are of.
    theirs = golden['state_dict']
    expected = from_authors({**theirs, **step['grads']})
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert len(grads) == len(step['grads'])
    # Whole, since a bias before a norm has a gradient of rounding alone.
    assert relative_l2(*(torch.cat([x[k].flatten() for k in grads])
                         for x in (grads, expected))) < tol
    expected = from_authors({**theirs, **step['buffers_after']})
    buffers = dict(model.named_buffers())
    assert len(buffers) == len(step['buffers_after'])
    for key, buffer in buffers.items():
        assert relative_l2(buffer, expected[key]) < tol, key


@pytest.mark.parametrize('arch', VARIANTS)
def test_parameters_and_macs(arch):
    width, counts = VanillaNet.arch_settings[arch]['dims'][-1], []
    for deploy in (True, False):
        with torch.device('meta'):
            model = ImageClassifier(
                dict(type='VanillaNet', arch=arch, deploy=deploy),
                head=dict(type='VanillaNetHead', num_classes=1000,
                          in_channels=width, deploy=deploy)).eval()
            image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(image)
        counts += [sum(p.numel() for p in model.parameters()),
                   counter.get_total_flops() // 2]
    assert tuple(counts) == VARIANTS[arch]


def test_initialization():
    net = VanillaNet(dict(dims=[64, 96, 96], strides=[1, 2]))
    net.init_weights()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002
        else:
            assert (parameter == name.endswith('weight')).all(), name


def test_pretrained_backbone(tmp_path):
    """Of a classifier in train form, for a backbone in deploy form."""
    source = randomize(VanillaNet(TINY))
    path = str(tmp_path / 'source.pth')
    torch.save({f'backbone.{k}': v for k, v in source.state_dict().items()},
               path)
    net = VanillaNet(
        TINY, deploy=True,
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    net.init_weights()
    x = torch.rand(2, 3, 32, 32)
    assert relative_l2(net.eval()(x)[0], source(x)[0]) < 1e-5


def test_other_input_channels_and_act_num():
    net = VanillaNet(TINY, in_channels=1, act_num=1)
    assert net(torch.rand(2, 1, 32, 32))[0].shape == (2, 12, 2, 2)
    assert net.stem.act.conv.weight.shape == (4, 1, 3, 3)
    assert VanillaNet(5).num_stages == 3  # as --cfg-options gives it


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch=14), r'one of 5, 6, .*, 13-x1\.5.*"14"'),
    (dict(arch=dict(dims=[4, 8], strides=[2], depth=3)), 'dims, strides'),
    (dict(arch=dict(dims=[4, 8], strides=[2, 1])), '2 dims and 2 strides'),
    (dict(arch=dict(dims=[4, 8], strides=[3])), '1 or 2'),
    (dict(arch=dict(dims=[4, 8], strides=[2], ada_pool=[0])), 'ada_pool'),
    (dict(arch=TINY, out_indices=(3, )), 'from -3 to 2, but got 3'),
    (dict(arch=TINY, out_indices=(0, 2, -1)), r'once, .* \[0, 2, 2\] of 3'),
    (dict(arch=TINY, frozen_stages=4), 'from -1 to 3, but got 4'),
])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VanillaNet(**kwargs)
