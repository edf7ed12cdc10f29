# What all experiments share. They learn from the smaller part of the digits,
# 355 images, and are tested on the larger, 1,442: so they are quick, hard
# enough to tell networks apart, and a mean of three seeds is known to a few
# tenths of a percent.
_base_ = '../../_base_/default_runtime.py'

custom_imports = dict(
    imports=['mmvanilla', 'mmvanilla.experiments'],
    allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', num_classes=10, mean=[77.9], std=[95.9]),
    head=dict(
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='DigitsDataset',
        split='val',
        pipeline=[
            dict(type='Resize', scale=72, interpolation='bicubic'),
            dict(type='RandomCrop', crop_size=64),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(
        type='DigitsDataset',
        split='train',
        pipeline=[
            dict(type='Resize', scale=64, interpolation='bicubic'),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=1)

train_cfg = dict(by_epoch=True, max_epochs=36, val_interval=36)
val_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=36, convert_to_iter_based=True)

# A third of the epochs, as in the authors' recipe.
custom_hooks = [dict(type='DeepTrainingHook', decay_epochs=12)]
default_hooks = dict(
    checkpoint=dict(
        _delete_=True, type='CheckpointHook', interval=-1, save_last=False))
