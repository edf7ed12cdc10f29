# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors' detector of COCO, trained on for other images: give them, with
# polygons, with --data FOLDER. For one GPU.
_base_ = './mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco-finetune.py'

model = dict(backbone=dict(init_cfg=None))
# Heads for another number of classes start from random weights.
load_from = 'vanillanet://mask_rcnn_vanillanet_13'

train_dataloader = dict(batch_size=4, num_workers=2)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
# The cosine ends with the run, whatever max_epochs is.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=4)

custom_hooks = [dict(type='mmpretrain.ReparameterizeHook')]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/segm_mAP'))
