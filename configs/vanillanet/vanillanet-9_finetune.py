# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
_base_ = './vanillanet-6_finetune.py'

model = dict(backbone=dict(arch='9'))
load_from = 'vanillanet://vanillanet_9'
