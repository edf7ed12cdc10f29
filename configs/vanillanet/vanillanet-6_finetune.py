# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# Official weights, trained on for other images: give them with --data FOLDER.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/finetune_30e_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='6', deep_training=False),
    head=dict(
        deep_training=False,
        loss=dict(
            _delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1)),
    # No mixup and no cutmix: augmentation is mild.
    train_cfg=None)
load_from = 'vanillanet://vanillanet_6'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.35, 1.0),
        backend='pillow',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=32, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, num_workers=2)
test_dataloader = val_dataloader

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
