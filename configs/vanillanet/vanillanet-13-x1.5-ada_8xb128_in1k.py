# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors published no recipe for this one: it is VanillaNet-10's.
_base_ = './vanillanet-13-x1.5_8xb128_in1k.py'

model = dict(backbone=dict(arch='13-x1.5-ada'))
