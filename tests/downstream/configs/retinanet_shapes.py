# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# RetinaNet without a deep training hook: lambda is 1 throughout.
_base_ = ['../../../configs/detection/'
          'retinanet_vanillanet-13_fpn_8xb4-ms-1x_coco.py',
          './shapes_detection.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, dims=[32, 32, 64, 128, 128],
                            strides=[1, 2, 2, 2]),
                  act_num=2, out_indices=(1, 2, 3), init_cfg=None),
    neck=dict(in_channels=[64, 128, 128], out_channels=64, num_outs=3),
    bbox_head=dict(
        num_classes=3, in_channels=64, feat_channels=64, stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32])),
    test_cfg=dict(nms_pre=200, max_per_img=20))

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
