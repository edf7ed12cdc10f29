# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VanillaNet', arch='6'),
    head=dict(
        type='VanillaNetHead',
        num_classes=1000,
        in_channels=4096,
        dropout=0.05,
        # Mean over samples and classes, smoothed after mixup and cutmix.
        loss=dict(type='LabelSmoothBCELoss', label_smooth_val=0.1),
        topk=(1, 5)),
    # One of the two per batch, each as often as the other.
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.4),
        dict(type='CutMix', alpha=1.0)
    ]))
