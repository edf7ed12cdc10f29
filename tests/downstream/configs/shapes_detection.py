# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# What the two detectors share: the shapes, and a training of a few minutes.
# Two bases may not set the same key, hence the names of its own.
shapes_root = 'data/shapes/'
shapes_metainfo = dict(classes=('circle', 'square', 'triangle'),
                       palette=[(220, 20, 60), (20, 160, 60), (30, 60, 220)])
shapes_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs')]
shapes_test_pipeline = [
    dict(type='LoadImageFromFile'),
    # To the size that they have: it notes the scale_factor.
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=(
             'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
shapes = dict(data_root=shapes_root, metainfo=shapes_metainfo)
shapes_loader = dict(num_workers=0, persistent_workers=False)
shapes_train_dataloader = dict(shapes_loader, batch_size=4, dataset=dict(
    shapes, ann_file='train.json', data_prefix=dict(img='train/'),
    filter_cfg=dict(filter_empty_gt=True, min_size=1),
    pipeline=shapes_train_pipeline))
shapes_val_dataloader = dict(shapes_loader, batch_size=8, dataset=dict(
    shapes, ann_file='val.json', data_prefix=dict(img='val/'),
    pipeline=shapes_test_pipeline))
shapes_evaluator = dict(ann_file=shapes_root + 'val.json')

shapes_max_epochs = 6
shapes_train_cfg = dict(max_epochs=6, val_interval=6)
shapes_optim_wrapper = dict(
    optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10),
    paramwise_cfg=dict(decay_rate=0.9))
shapes_param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=shapes_max_epochs,
         eta_min=2e-5, convert_to_iter_based=True)]
shapes_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=shapes_max_epochs, max_keep_ckpts=1))
