# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# A short run from trained weights, on one GPU or a CPU. Weights as the
# authors trained them have lambda 1, so there is no deep training.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    # Biases and the parameters of norms are all that is one-dimensional.
    paramwise_cfg=dict(flat_decay_mult=0.0))

# The cosine ends with the run, whatever max_epochs is.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', convert_to_iter_based=True)
]

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

custom_hooks = [dict(type='ReparameterizeHook')]
auto_scale_lr = dict(base_batch_size=32)
