# The base of all experiments. They train on the smaller part of the digits,
# 355 images, and are tested on the larger, 1,442.
_base_ = [
    '../../../../configs/_base_/datasets/digits.py',
    '../../../../configs/_base_/default_runtime.py'
]

custom_imports = dict(
    imports=['mmvanilla', 'networks'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    data_preprocessor=_base_.data_preprocessor,
    head=dict(
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))

train_pipeline = _base_.train_pipeline
train_pipeline[0]['scale'] = 72
train_pipeline[1]['crop_size'] = 64
test_pipeline = _base_.test_pipeline
test_pipeline[0]['scale'] = 64
train_dataloader = dict(
    batch_size=32, dataset=dict(split='val', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128, dataset=dict(split='train', pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(by_epoch=True, max_epochs=36, val_interval=36)
val_cfg = dict()
test_cfg = dict()

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
