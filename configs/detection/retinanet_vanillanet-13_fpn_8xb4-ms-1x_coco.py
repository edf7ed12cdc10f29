# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors' set-up for COCO: box AP 43.0 (Swin-T: 41.5).
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/vanillanet-13_8xb4-ms-1x_coco.py'
]

model = dict(
    # Strides 8, 16, 32.
    backbone=dict(_base_.backbone, out_indices=(1, -3, -1)),
    neck=dict(in_channels=[1024, 2048, 4096], start_level=0, num_outs=5))
