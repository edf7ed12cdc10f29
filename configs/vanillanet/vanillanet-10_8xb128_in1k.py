# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_bs1024_lamb.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='10'))

optim_wrapper = dict(optimizer=dict(weight_decay=0.25))
