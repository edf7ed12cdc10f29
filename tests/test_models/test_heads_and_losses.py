# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from mmvanilla.layers import set_lam
from mmvanilla.models import LabelSmoothBCELoss, VanillaNetHead


def test_logits_are_of_the_pooled_map():
    head = VanillaNetHead(5, 8).double().eval()
    set_lam(head, 0.3)
    feats = torch.randn(3, 8, 4, 6, dtype=torch.float64)
    pooled = F.adaptive_avg_pool2d(feats, 1)
    cls = head.classifier
    expected = cls.conv2(
        F.leaky_relu(cls.norm1(cls.conv1(pooled)), 0.3)).flatten(1)
    torch.testing.assert_close(head((feats, )), expected)
    assert cls.norm2 is None

    set_lam(head, 1)
    expected = head((feats, ))
    head.switch_to_deploy()
    torch.testing.assert_close(head((feats, )), expected)
    assert head.deploy


def test_dropout_only_in_training():
    torch.manual_seed(0)
    head = VanillaNetHead(5, 64, dropout=0.5, deploy=True)
    feats = (torch.ones(1, 64, 2, 2), )
    assert torch.equal(head.eval()(feats), head(feats))
    # Of 64 channels that are all the same, some are now missing.
    assert not torch.equal(head.train()(feats), head.eval()(feats))


def test_loss_and_prediction_in_a_classifier():
    model = ImageClassifier(
        dict(type='VanillaNet', arch=dict(dims=[4, 8], strides=[2])),
        head=dict(type='VanillaNetHead', num_classes=5, in_channels=8,
                  topk=(1, 2), cal_acc=True)).eval()
    images = torch.rand(2, 3, 32, 32)
    logits = model(images)
    for result, row in zip(model(images, mode='predict'), logits):
        torch.testing.assert_close(result.pred_score, row.softmax(0))
        assert result.pred_label.item() == row.argmax().item()
    data = [DataSample().set_gt_label(label) for label in (1, 4)]
    losses = model(images, data, mode='loss')
    torch.testing.assert_close(
        losses['loss'], F.cross_entropy(logits, torch.tensor([1, 4])))
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-2'}


def test_refuses_no_classes():
    with pytest.raises(ValueError, match='positive, but got 0'):
        VanillaNetHead(0, 8)


@pytest.mark.parametrize('is_soft', [False, True])
def test_label_smooth_bce_loss(is_soft):
    torch.manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 4])
    scores = F.one_hot(label, 5).double()
    if is_soft:
        label = scores = torch.rand(4, 5).softmax(1).double()
    expected = 2 * F.binary_cross_entropy_with_logits(
        logits, scores * 0.9 + 0.1 / 5)
    loss = LabelSmoothBCELoss(0.1, loss_weight=2)
    torch.testing.assert_close(loss(logits, label), expected)
    torch.testing.assert_close(
        loss(logits, label, avg_factor=8), expected / 2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_label_smooth_bce_loss_in_half_precision(dtype):
    torch.manual_seed(0)
    # The sum of these 128,000 terms is above the 65,504 of float16.
    logits = (2 * torch.randn(128, 1000)).to(dtype).requires_grad_()
    label = torch.randint(1000, (128, ))
    loss = LabelSmoothBCELoss(0.1)(logits, label)
    expected = LabelSmoothBCELoss(0.1)(logits.double(), label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()
    with pytest.raises(ValueError, match='below 1, but got 1'):
        LabelSmoothBCELoss(1)
