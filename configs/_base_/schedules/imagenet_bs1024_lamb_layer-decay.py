# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The recipe with layer-wise learning rate decay, which VanillaNet-6 and -7
# have. The minimum is a ratio here: that of a layer decays as its maximum.
_base_ = './imagenet_bs1024_lamb.py'

optim_wrapper = dict(
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8))

param_scheduler = _base_.param_scheduler
param_scheduler[1]['eta_min_ratio'] = (
    param_scheduler[1].pop('eta_min') / _base_.optim_wrapper.optimizer.lr)
