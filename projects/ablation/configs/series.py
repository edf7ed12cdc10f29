# The reach n of the series activation.
_base_ = '_base_/digits.py'

model = dict(
    backbone=dict(
        type='VanillaNet',
        # VanillaNet-6, a sixteenth as wide.
        arch=dict(dims=[32, 64, 128, 256, 256], strides=[2, 2, 2, 1]),
        in_channels=1),
    head=dict(type='VanillaNetHead', in_channels=256))

grid = dict(
    title='Reach n of the series activation, VanillaNet-6',
    rows=[
        dict(
            name=f'n = {n}',
            change=dict(model=dict(backbone=dict(act_num=n))),
            paper=paper)
        for n, paper in enumerate([60.53, 74.53, 75.62, 76.36, 76.43])
    ])
