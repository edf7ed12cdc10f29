# The gain of more layers.
_base_ = 'series.py'

# The published variants, a sixteenth as wide: channels over 8, strides and the
# paper's top-1 accuracy on ImageNet, in percent.
variants = {
    '5': ([4, 8, 16, 32], [2, 2, 2], 72.49),
    '6': ([4, 8, 16, 32, 32], [2, 2, 2, 1], 76.36),
    '7': ([4, 4, 8, 16, 32, 32], [1, 2, 2, 2, 1], 77.98),
    '8': ([4, 4, 8, 16, 16, 32, 32], [1, 2, 2, 1, 2, 1], 79.13),
    '9': ([4, 4, 8] + [16] * 3 + [32] * 2, [1, 2, 2, 1, 1, 2, 1], 79.87),
    '10': ([4, 4, 8] + [16] * 4 + [32] * 2, [1, 2, 2] + [1] * 3 + [2, 1],
           80.57),
    '11': ([4, 4, 8] + [16] * 5 + [32] * 2, [1, 2, 2] + [1] * 4 + [2, 1],
           81.08),
    '12': ([4, 4, 8] + [16] * 6 + [32] * 2, [1, 2, 2] + [1] * 5 + [2, 1],
           81.55),
    '13': ([4, 4, 8] + [16] * 7 + [32] * 2, [1, 2, 2] + [1] * 6 + [2, 1],
           82.05),
}

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
