# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# What the authors' detectors share: everything but neck and heads.
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(imports=['mmvanilla'], allow_failed_imports=False)

backbone = dict(
    _delete_=True,
    type='mmpretrain.VanillaNet',
    arch='13',
    act_num=4,
    # Strides 4, 8, 16, 32: stages 0, 1, 8 and 10. Counted from the end they
    # are the same in VanillaNet-7 to -13.
    out_indices=(0, 1, -3, -1),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='vanillanet://vanillanet_13_act_num_4_kd_pretrain',
        prefix='backbone.'))

# Batch norms become SyncBN where there are several processes.
sync_bn = 'torch'

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(480, 1025, 32)],
        keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
train_dataloader = dict(
    batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=8e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmpretrain.VanillaNetLayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.6))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        milestones=[10, 11],  # of 12: set them with train_cfg.max_epochs
        gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=32)

# Checkpoints are whole after a kill.
default_hooks = dict(checkpoint=dict(type='mmpretrain.AtomicCheckpointHook'))
