# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The digits in a new-style config, cut short."""
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from mmpretrain.datasets import PackInputs, Resize
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ImageClassifier, LabelSmoothLoss
from torch.optim import AdamW

from mmvanilla.datasets import DigitsDataset
from mmvanilla.engine import DeepTrainingHook, ReparameterizeHook
from mmvanilla.models import VanillaNet, VanillaNetHead

with read_base():
    from .new_style_base import *  # noqa: F403

# So few iterations reach the running statistics.
norm_cfg = dict(type='BN', eps=1e-6, momentum=0.9)
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(num_classes=10, mean=[77.9], std=[95.9]),
    backbone=dict(
        type=VanillaNet,
        arch=dict(dims=[4, 8, 8], strides=[2, 1]),
        in_channels=1,
        norm_cfg=norm_cfg),
    head=dict(
        type=VanillaNetHead,
        num_classes=10,
        in_channels=8,
        norm_cfg=norm_cfg,
        loss=dict(type=LabelSmoothLoss, label_smooth_val=0.1)))

pipeline = [dict(type=Resize, scale=32), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(
        type=DigitsDataset, split='train', indices=64, pipeline=pipeline),
    sampler=dict(type=DefaultSampler, shuffle=True))
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(
        type=DigitsDataset, split='val', indices=32, pipeline=pipeline),
    sampler=dict(type=DefaultSampler, shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=1)
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-2))
auto_scale_lr = dict(base_batch_size=64, rule='sqrt')
custom_hooks = [
    dict(type=DeepTrainingHook, decay_epochs=1),
    dict(type=EMAHook, momentum=0.9, update_buffers=True),
    dict(type=ReparameterizeHook, checkpoint='last'),
]
