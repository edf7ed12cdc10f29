# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The real digits that come with scikit-learn, 8 x 8, enlarged to 32 x 32.
dataset_type = 'DigitsDataset'
data_preprocessor = dict(
    type='ClsDataPreprocessor', num_classes=10, mean=[77.9], std=[95.9])

train_pipeline = [
    dict(type='Resize', scale=36, interpolation='bicubic'),
    dict(type='RandomCrop', crop_size=32),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=32, interpolation='bicubic'),
    dict(type='PackInputs'),
]
# mmpretrain's train.py makes workers persistent, and here are none.
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=1)

test_dataloader = val_dataloader
test_evaluator = val_evaluator
