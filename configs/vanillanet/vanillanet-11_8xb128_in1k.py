# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors published no recipe for this one: it is VanillaNet-10's.
_base_ = './vanillanet-10_8xb128_in1k.py'

model = dict(backbone=dict(arch='11'))
