# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = './upernet_vanillanet-13_8xb2-160k_ade20k-512x512.py'
model = dict(backbone=dict(deep_training=False))
