# The gain of more layers.
_base_ = 'series.py'

# The published variants, a sixteenth as wide: channels over 8, strides and the
# paper's top-1 accuracy on ImageNet, in percent.
variants = {
    '5': ([4, 8, 16, 32], [2, 2, 2], 72.49),
    '6': ([4, 8, 16, 32, 32], [2, 2, 2, 1], 76.36),
    '7': ([4, 4, 8, 16, 32, 32], [1, 2, 2, 2, 1], 77.98),
}
for n, paper in enumerate([79.13, 79.87, 80.57, 81.08, 81.55, 82.05], 2):
    variants[str(6 + n)] = ([4, 4, 8] + [16] * n + [32, 32],
                            [1, 2, 2] + [1] * (n - 1) + [2, 1], paper)

grid = dict(
    title='Depth of VanillaNet',
    rows=[
        dict(
            name=name,
            change=dict(
                model=dict(
                    backbone=dict(
                        arch=dict(
                            dims=[8 * dim for dim in dims],
                            strides=strides)))),
            paper=paper)
        for name, (dims, strides, paper) in variants.items()
    ])
