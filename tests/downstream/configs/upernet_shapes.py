# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# UPerNet in an iteration-based loop, deep training over half of it.
_base_ = ['../../../configs/segmentation/'
          'upernet_vanillanet-13_8xb2-160k_ade20k-512x512.py']

num_classes = 4
crop_size = (128, 128)
# Nine pixels in ten are background; unweighted it drowns out the shapes.
class_weight = [0.1, 1.0, 1.0, 1.0]
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(arch=dict(_delete_=True, dims=[32, 32, 64, 128, 128],
                            strides=[1, 2, 2, 2]),
                  act_num=2, out_indices=(0, 1, 2, 3), init_cfg=None),
    decode_head=dict(
        in_channels=[32, 64, 128, 128], channels=32, num_classes=num_classes,
        loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=num_classes,
                        loss_decode=dict(class_weight=class_weight)))

# In ADE20K's format, but not with its 150 classes.
dataset_type = 'BaseSegDataset'
metainfo = dict(
    classes=('background', 'circle', 'square', 'triangle'),
    palette=[(0, 0, 0), (220, 20, 60), (20, 160, 60), (30, 60, 220)])
data_root = 'data/shapes/'
train_pipeline = [dict(type='LoadImageFromFile'),
                  dict(type='LoadAnnotations', reduce_zero_label=True),
                  dict(type='RandomFlip', prob=[0.3, 0.3],
                       direction=['horizontal', 'vertical']),
                  dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'),
                 dict(type='Resize', scale=crop_size, keep_ratio=True),
                 dict(type='LoadAnnotations', reduce_zero_label=True),
                 dict(type='PackSegInputs')]
# The images have one size, which a pyramid would leave.
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'].pop(0)
shapes = dict(type=dataset_type, img_suffix='.png', seg_map_suffix='.png',
              metainfo=metainfo, reduce_zero_label=True, data_root=data_root)
loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, dataset=dict(
    shapes, _delete_=True, pipeline=train_pipeline,
    data_prefix=dict(img_path='train', seg_map_path='train_masks')))
val_dataloader = dict(loader, dataset=dict(
    shapes, _delete_=True, pipeline=test_pipeline,
    data_prefix=dict(img_path='val', seg_map_path='val_masks')))
test_dataloader = val_dataloader

max_iters = 500
optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=1.0, eta_min=2e-5, by_epoch=False, begin=30,
         end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=25),
                     checkpoint=dict(interval=max_iters, save_best=None))
custom_hooks = [
    dict(type='mmpretrain.DeepTrainingHook', decay_iters=max_iters // 2)]
randomness = dict(seed=0)
