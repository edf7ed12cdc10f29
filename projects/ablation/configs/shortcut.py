# Whether shortcuts would improve VanillaNet.
_base_ = 'series.py'

grid = dict(
    title='Shortcuts around the stages, VanillaNet-6',
    rows=[dict(name='none', change=dict(), paper=76.36)] + [
        dict(
            name=f'{place} the activation',
            change=dict(
                model=dict(
                    backbone=dict(type='ShortcutVanillaNet', shortcut=place))),
            paper=paper)
        for place, paper in (('before', 75.92), ('after', 75.72))
    ])
