# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from mmvanilla.layers import set_lam
from mmvanilla.models import VanillaNetHead


def samples(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def test_logits_are_of_the_pooled_map():
    head = VanillaNetHead(5, 8).double().eval()
    set_lam(head, 0.3)
    feats = torch.randn(3, 8, 4, 6, dtype=torch.float64)
    pooled = F.adaptive_avg_pool2d(feats, 1)
    cls = head.classifier
    expected = cls.conv2(
        F.leaky_relu(cls.norm1(cls.conv1(pooled)), 0.3)).flatten(1)
    assert expected.shape == (3, 5)
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


@pytest.mark.parametrize('loss, reference', [
    (dict(type='CrossEntropyLoss'), F.cross_entropy),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
     lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1)),
])
def test_losses_with_hard_labels(loss, reference):
    head = VanillaNetHead(5, 8, loss=loss, topk=(1, 2), cal_acc=True)
    feats = (torch.randn(4, 8, 2, 2), )
    losses = head.loss(feats, samples([0, 1, 2, 4]))
    expected = reference(head(feats), torch.tensor([0, 1, 2, 4]))
    torch.testing.assert_close(losses['loss'], expected)
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-2'}


def test_soft_labels():
    head = VanillaNetHead(
        5, 8, loss=dict(type='CrossEntropyLoss', use_soft=True))
    feats = (torch.randn(4, 8, 2, 2), )
    scores = torch.rand(4, 5).softmax(1)
    data = [DataSample().set_gt_score(score) for score in scores]
    losses = head.loss(feats, data)
    torch.testing.assert_close(losses['loss'],
                               F.cross_entropy(head(feats), scores))


def test_predict_in_a_classifier():
    model = ImageClassifier(
        dict(type='VanillaNet', arch=dict(dims=[4, 8], strides=[2])),
        head=dict(type='VanillaNetHead', num_classes=5, in_channels=8)).eval()
    images = torch.rand(2, 3, 32, 32)
    logits = model(images)
    results = model(images, mode='predict')
    for result, row in zip(results, logits):
        torch.testing.assert_close(result.pred_score, row.softmax(0))
        assert result.pred_label.item() == row.argmax().item()


def test_refuses_no_classes():
    with pytest.raises(ValueError, match='positive, but got 0'):
        VanillaNetHead(0, 8)
