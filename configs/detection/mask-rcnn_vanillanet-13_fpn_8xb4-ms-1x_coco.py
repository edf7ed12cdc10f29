# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors' set-up for COCO: box AP 44.3, mask AP 40.1 (Swin-T: 43.7, 39.8).
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/vanillanet-13_8xb4-ms-1x_coco.py'
]

model = dict(
    backbone=_base_.backbone, neck=dict(in_channels=[512, 1024, 2048, 4096]))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['with_mask'] = True
test_pipeline = _base_.test_pipeline
test_pipeline[2]['with_mask'] = True
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1.3e-4))
# The second step falls on the end of the training, as the authors' does.
param_scheduler = _base_.param_scheduler
param_scheduler[1]['milestones'] = [10, 12]
