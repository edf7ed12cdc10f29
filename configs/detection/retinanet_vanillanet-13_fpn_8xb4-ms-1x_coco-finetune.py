# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = './retinanet_vanillanet-13_fpn_8xb4-ms-1x_coco.py'
model = dict(backbone=dict(deep_training=False))
