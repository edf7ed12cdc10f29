# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# RTMDet with a narrow VanillaNet in the place of CSPNeXt, in the range of
# RTMDet-s: 7.86 M parameters and 14.2 GMACs at 640 x 640 (8.89 M, 14.8 G).
# There are no pretrained weights of this width: it trains from scratch.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmvanilla'], allow_failed_imports=False)

norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VanillaNet',
        # VanillaNet-13 with channels of 80 to 640 instead of 512 to 4096.
        arch=dict(
            dims=[80, 80, 160] + [320] * 7 + [640, 640],
            strides=[1, 2, 2, 1, 1, 1, 1, 1, 1, 2, 1]),
        # Strides 8, 16, 32.
        out_indices=(1, -3, -1)),
    neck=dict(in_channels=[160, 320, 640], norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg))

# Batch norms become SyncBN where there are several processes.
sync_bn = 'torch'

# Checkpoints are whole after a kill. The cached mosaic and mixup of a resumed
# run start empty.
default_hooks = dict(checkpoint=dict(type='mmpretrain.AtomicCheckpointHook'))
# Over the whole run, and not over its second half: so it follows max_epochs,
# for which the switch_epoch below is to be set too.
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.05,
        convert_to_iter_based=True)
]
custom_hooks = [
    # Lambda is 1 after a third of the epochs.
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=1 / 3),
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=280,
        switch_pipeline={{_base_.train_pipeline_stage2}})
]
