# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
# The authors' recipe, 8 GPUs x 128 images (arXiv 2305.12972, section 4).
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    # Lamb itself clips the global norm of the gradient to 1.
    optimizer=dict(
        type='Lamb', lr=3.5e-3, weight_decay=0.3, betas=(0.9, 0.999),
        eps=1e-8),
    # Biases and the parameters of norms are all that is one-dimensional.
    paramwise_cfg=dict(flat_decay_mult=0.0))

# The cosine ends with the run, whatever max_epochs is, and lambda is 1 after
# a third of it.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-10,  # 0, which LinearLR would divide by
        begin=0,
        end=5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=5,
        convert_to_iter_based=True)
]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

custom_hooks = [
    dict(type='DeepTrainingHook', decay_epochs=1 / 3),
    # A decay of 0.99996, batch norm statistics included; the accuracy that
    # picks the best checkpoint is that of the averaged weights.
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        priority='ABOVE_NORMAL')
]

# The learning rate is for a batch of 8 x 128. With --auto-scale-lr, the
# tools/train.py of mmvanilla scales it with the square root of the batch, as
# the authors advise (their issue 13). mmpretrain's train.py and mim do not
# read `rule` and scale it linearly.
auto_scale_lr = dict(base_batch_size=1024, rule='sqrt')
