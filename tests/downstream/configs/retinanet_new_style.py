# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A narrow RetinaNet in mmengine's new style, as mmdet's own are."""
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import (
    LoadAnnotations,
    PackDetInputs,
    Resize,
)
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models import (
    FPN,
    DetDataPreprocessor,
    FocalLoss,
    L1Loss,
    RetinaHead,
    RetinaNet,
)
from mmdet.models.task_modules import (
    AnchorGenerator,
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
    PseudoSampler,
)
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.visualization import LocalVisBackend
from torch.optim import AdamW

from mmvanilla.models import VanillaNet

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type=VanillaNet, arch=dict(dims=[8, 8, 16, 16], strides=[1, 2, 2]),
        act_num=1,
        # So few iterations reach the running statistics.
        norm_cfg=dict(type='BN', eps=1e-6, momentum=0.9), out_indices=(1, 2)),
    neck=dict(type=FPN, in_channels=[16, 16], out_channels=16, num_outs=2),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=16,
                   feat_channels=16, stacked_convs=1,
                   anchor_generator=dict(
                       type=AnchorGenerator, octave_base_scale=4,
                       scales_per_octave=1, ratios=[1.0], strides=[8, 16]),
                   bbox_coder=dict(type=DeltaXYWHBBoxCoder),
                   loss_cls=dict(type=FocalLoss, use_sigmoid=True),
                   loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4,
                      min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=100, score_thr=0.0,
                  nms=dict(type=nms, iou_threshold=0.5), max_per_img=10))

data_root = 'data/shapes/'
dataset = dict(type=CocoDataset, data_root=data_root,
               metainfo=dict(classes=('circle', 'square', 'triangle')))
load = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 64)),
        dict(type=LoadAnnotations, with_bbox=True)]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        dataset, ann_file='train.json', data_prefix=dict(img='train/'),
        indices=16, pipeline=[*load, dict(type=PackDetInputs)]))
val_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        dataset, ann_file='val.json', data_prefix=dict(img='val/'),
        test_mode=True, indices=8,
        pipeline=[*load, dict(type=PackDetInputs, meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type=CocoMetric, ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3))
default_hooks = dict(visualization=dict(type=DetVisualizationHook))
visualizer = dict(
    type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)])
default_scope = None
