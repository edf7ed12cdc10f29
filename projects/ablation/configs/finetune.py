# Merging to fine-tune form as soon as lambda is 1, against training in train
# form to the end, and against no deep training at all. The paper has no
# figures for it.
_base_ = 'series.py'

custom_imports = dict(
    imports=['mmvanilla', 'networks', 'hooks'], allow_failed_imports=False)

deep_training = dict(type='DeepTrainingHook', decay_epochs=12)
switch = dict(type='SwitchToFinetuneHook', priority='LOW')
plain = dict(deep_training=False)
grid = dict(
    title='Fine-tune form in training, VanillaNet-6',
    rows=[
        dict(name='train form to the end',
             change=dict(custom_hooks=[deep_training])),
        dict(name='fine-tune form once lambda is 1',
             change=dict(custom_hooks=[deep_training, switch])),
        dict(name='fine-tune form from the start',
             change=dict(
                 custom_hooks=[], model=dict(backbone=plain, head=plain))),
    ])
