# A narrow VanillaNet on the real digits that come with scikit-learn: the whole
# road, training, merging and testing, in a few minutes on a CPU.
_base_ = ['../_base_/default_runtime.py']

custom_imports = dict(imports=['mmvanilla'], allow_failed_imports=False)

arch = dict(dims=[64, 128, 192, 192], strides=[2, 2, 1])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', num_classes=10, mean=[77.9], std=[95.9]),
    backbone=dict(type='VanillaNet', arch=arch, in_channels=1),
    head=dict(
        type='VanillaNetHead',
        num_classes=10,
        in_channels=192,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))

test_pipeline = [
    dict(type='Resize', scale=32, interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_pipeline = [
    dict(type='Resize', scale=36, interpolation='bicubic'),
    dict(type='RandomCrop', crop_size=32),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='DigitsDataset', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='DigitsDataset', split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=30, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=64)

custom_hooks = [
    dict(type='DeepTrainingHook', decay_epochs=15),
    dict(type='ReparameterizeHook', checkpoint='last'),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=10, max_keep_ckpts=1))
randomness = dict(seed=0)
