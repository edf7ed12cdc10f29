# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F

from mmvanilla.models import LabelSmoothBCELoss, VanillaNetHead


def test_dropout_only_in_training():
    head = VanillaNetHead(5, 64, dropout=0.5, deploy=True)
    feats = (torch.ones(1, 64, 2, 2), )
    assert torch.equal(head.eval()(feats), head(feats))
    # Of 64 channels that are all the same, some are now missing.
    assert not torch.equal(head.train()(feats), head.eval()(feats))


def test_label_smooth_bce_loss():
    logits = torch.randn(4, 5, dtype=torch.float64)
    hard, soft = torch.tensor([0, 1, 2, 4]), torch.rand(4, 5).double()
    loss = LabelSmoothBCELoss(0.1, loss_weight=2)
    for label, scores in ((hard, F.one_hot(hard, 5).double()), (soft, soft)):
        expected = 2 * F.binary_cross_entropy_with_logits(
            logits, scores * 0.9 + 0.1 / 5)
        torch.testing.assert_close(loss(logits, label), expected)
        torch.testing.assert_close(
            loss(logits, label, avg_factor=8), expected / 2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_label_smooth_bce_loss_in_half_precision(dtype):
    # The sum of these 128,000 terms is above the 65,504 of float16.
    logits = (2 * torch.randn(128, 1000)).to(dtype).requires_grad_()
    label = torch.randint(1000, (128, ))
    loss = LabelSmoothBCELoss(0.1)(logits, label)
    expected = LabelSmoothBCELoss(0.1)(logits.double(), label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


def test_refusals():
    with pytest.raises(ValueError, match='positive, but got 0'):
        VanillaNetHead(0, 8)
    with pytest.raises(ValueError, match='below 1, but got 1'):
        LabelSmoothBCELoss(1)
