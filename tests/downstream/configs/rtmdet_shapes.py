# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# RTMDet with deep training: lambda goes from 0 to 1 in half of the epochs.
_base_ = ['../../../configs/detection/rtmdet_vanillanet-s_8xb32-300e_coco.py',
          './shapes_detection.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, dims=[32, 32, 64, 128, 128],
                            strides=[1, 2, 2, 2]),
                  act_num=2, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 128], out_channels=64),
    bbox_head=dict(
        num_classes=3, in_channels=64, feat_channels=64, stacked_convs=1),
    test_cfg=dict(nms_pre=200, max_per_img=20))
custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=3, per_iter=True)]

train_dataloader = _base_.shapes_train_dataloader
# With masks, RTMDet assigns by their centres.
train_dataloader.dataset.pipeline[1].with_mask = False
val_dataloader = _base_.shapes_val_dataloader
test_dataloader = val_dataloader
val_evaluator = _base_.shapes_evaluator
test_evaluator = val_evaluator

# It learns more slowly than the other detectors.
max_epochs = 10
train_cfg = dict(
    max_epochs=max_epochs, val_interval=max_epochs, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10))
param_scheduler = _base_.shapes_param_scheduler
param_scheduler[1].T_max = max_epochs
default_hooks = _base_.shapes_hooks
default_hooks.checkpoint.interval = max_epochs
randomness = dict(seed=0)
