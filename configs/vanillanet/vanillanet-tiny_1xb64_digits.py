# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# A narrow VanillaNet on real handwritten digits: training, merging and testing
# take a few minutes on a CPU.
_base_ = ['../_base_/datasets/digits.py', '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='VanillaNet',
        arch=dict(dims=[64, 128, 192, 192], strides=[2, 2, 1]),
        in_channels=1),
    head=dict(
        type='VanillaNetHead',
        num_classes=10,
        in_channels=192,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0))
param_scheduler = dict(type='CosineAnnealingLR', convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=64)

custom_hooks = [
    dict(type='DeepTrainingHook', decay_epochs=0.5),  # of the run
    dict(type='ReparameterizeHook', checkpoint='last'),
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
