# The gain of deep training and series activations, in three networks.
_base_ = '_base_/digits.py'

model = dict(
    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead'))

# A sixteenth, a quarter and an eighth as wide: backbone, channels of its
# output, and the paper's top-1 accuracy on ImageNet.
networks = {
    'VanillaNet-6': (
        dict(type='PlainNet', dims=[32, 64, 128, 256, 256],
             strides=[2, 2, 2, 1]),
        256, [59.58, 60.53, 75.23, 76.36]),
    'AlexNet': (
        dict(type='NarrowAlexNet', width=24),
        1024, [57.52, 59.09, 61.12, 63.59]),
    'ResNet-50': (
        dict(type='ThreeReLUResNet', depth=50, stem_channels=8,
             base_channels=8),
        256, [76.13, 76.16, 76.30, 76.27]),
}
# Not the fully connected layers: their maps of 1 x 1 have no neighbours for a
# series activation to sum over.
acts = ['stem*', 'stages.*', 'features.*', 'relu', 'layer*']
techniques = {
    'neither': dict(convs=None, acts=None),
    'deep training': dict(convs='*', acts=None),
    'series activation': dict(convs=None, acts=acts),
    'both': dict(convs='*', acts=acts),
}
hooks = [dict(type='DeepTrainingHook', decay_epochs=12)]

grid = dict(
    title='Deep training and series activations in three networks',
    rows=[
        dict(
            group=group,
            name=name,
            change=dict(
                model=dict(
                    backbone=dict(
                        type='WithDeepTraining',
                        model=dict(backbone, in_channels=1),
                        input_shape=[1, 64, 64],
                        **technique),
                    head=dict(in_channels=channels)),
                custom_hooks=hooks if technique['convs'] else []),
            paper=paper)
        for group, (backbone, channels, papers) in networks.items()
        for (name, technique), paper in zip(techniques.items(), papers)
    ])
