# Schedules of lambda from 0 to 1. The paper has no figures for them.
_base_ = 'series.py'

hook = dict(type='DeepTrainingHook')
schedules = {
    'linear, a third of the epochs (recipe)': dict(decay_epochs=12),
    'linear, a sixth': dict(decay_epochs=6),
    'linear, two thirds': dict(decay_epochs=24),
    'linear, all but the last epoch': dict(decay_epochs=35),
    'cosine, a third': dict(decay_epochs=12, schedule='cosine'),
    'linear, a third, per iteration': dict(decay_epochs=12, per_iter=True),
    'cosine, a third, per iteration': dict(
        decay_epochs=12, schedule='cosine', per_iter=True),
}

grid = dict(
    title='Schedule of lambda, VanillaNet-6',
    rows=[
        dict(name=name, change=dict(custom_hooks=[dict(hook, **schedule)]))
        for name, schedule in schedules.items()
    ] + [dict(name='lambda 1 from the start', change=dict(custom_hooks=[]))])
