# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# RTMDet for images that are given with --data FOLDER, on one GPU. No published
# weights have the widths of this VanillaNet: it trains from scratch, in train
# form, for more epochs than a detector that has weights.
_base_ = './rtmdet_vanillanet-s_8xb32-300e_coco.py'

train_dataloader = dict(batch_size=16, num_workers=4)
val_dataloader = dict(num_workers=2)
test_dataloader = val_dataloader

max_epochs = 100
switch_epoch = 90  # from where on mosaic and mixup are left out
train_cfg = dict(
    max_epochs=max_epochs,
    val_interval=5,
    dynamic_intervals=[(switch_epoch, 1)])
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        begin=0,
        end=3,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=3,
        eta_min_ratio=0.05,
        convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=16)

custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=1 / 3),
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=switch_epoch,
        switch_pipeline={{_base_.train_pipeline_stage2}}),
    dict(type='mmpretrain.ReparameterizeHook')
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(
        interval=5, max_keep_ckpts=1, save_best='coco/bbox_mAP'))
