# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_bs1024_lamb_layer-decay.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='7'))

optim_wrapper = dict(optimizer=dict(lr=4.7e-3, weight_decay=0.35))
param_scheduler = _base_.param_scheduler
param_scheduler[1]['eta_min_ratio'] = 1e-6 / optim_wrapper['optimizer']['lr']
