# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_bs1024_lamb.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='6'),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.15),
        dict(type='CutMix', alpha=1.0)
    ]))

optim_wrapper = dict(
    optimizer=dict(lr=4.8e-3, weight_decay=0.32),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-10,
        begin=0,
        end=5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        # As a ratio: the minimum of a layer decays as its maximum does.
        eta_min_ratio=1e-6 / 4.8e-3,
        T_max=295,
        begin=5,
        end=300,
        convert_to_iter_based=True)
]
