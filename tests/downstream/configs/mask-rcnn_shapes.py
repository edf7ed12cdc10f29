# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# Mask R-CNN with deep training: lambda goes from 0 to 1 in half of the epochs.
_base_ = ['../../../configs/detection/'
          'mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco.py',
          './shapes_detection.py']

norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(arch=dict(_delete_=True, dims=[32, 32, 64, 128, 128],
                            strides=[1, 2, 2, 2]),
                  act_num=2, out_indices=(0, 1, 2, 3), init_cfg=None),
    # Narrow heads with norms learn in minutes.
    neck=dict(in_channels=[32, 64, 128, 128], out_channels=64, num_outs=4,
              norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64,
                  anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(type='ConvFCBBoxHead', num_shared_convs=1,
                       num_shared_fcs=1, in_channels=64, conv_out_channels=16,
                       fc_out_channels=64, norm_cfg=norm_cfg, num_classes=3),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64,
                       norm_cfg=norm_cfg, num_classes=3)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=100),
                   rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)))
custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_epochs=3, per_iter=True)]

train_pipeline = _base_.shapes_train_pipeline
test_pipeline = _base_.shapes_test_pipeline
train_dataloader = _base_.shapes_train_dataloader
val_dataloader = _base_.shapes_val_dataloader
test_dataloader = val_dataloader
val_evaluator = _base_.shapes_evaluator
test_evaluator = val_evaluator

train_cfg = _base_.shapes_train_cfg
optim_wrapper = _base_.shapes_optim_wrapper
param_scheduler = _base_.shapes_param_scheduler
default_hooks = _base_.shapes_hooks
randomness = dict(seed=0)
