# Whether shortcuts would improve VanillaNet.
_base_ = 'series.py'

networks = {
    place: dict(
        model=dict(backbone=dict(type='ShortcutVanillaNet', shortcut=place)))
    for place in ('before', 'after')
}

grid = dict(
    title='Shortcuts around the stages, VanillaNet-6',
    rows=[
        dict(name='none', change=dict(), paper=76.36),
        dict(
            name='before the activation',
            change=networks['before'],
            paper=75.92),
        dict(
            name='after the activation',
            change=networks['after'],
            paper=75.72),
    ])
