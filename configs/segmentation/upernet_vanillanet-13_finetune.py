# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# Weights of ImageNet, trained on for other images: give them with --data
# FOLDER. For one GPU.
_base_ = './upernet_vanillanet-13_8xb2-160k_ade20k-512x512-finetune.py'

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    # A batch norm cannot be trained on a single image at the end.
    drop_last=True,
    sampler=dict(type='DefaultSampler'))
val_dataloader = dict(num_workers=2)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-5))
# The last schedule ends with the run, whatever max_epochs is.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(type='PolyLR', power=1.0, begin=1, convert_to_iter_based=True)
]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=50, val_interval=1)
auto_scale_lr = dict(base_batch_size=4)

custom_hooks = [dict(type='mmpretrain.ReparameterizeHook')]
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=1))
log_processor = dict(by_epoch=True)
