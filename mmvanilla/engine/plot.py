# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Draw the curves of a training run."""
import json
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..utils.errors import UserError
from ..utils.files import replace_atomically

# Keys of a line of scalars.json that are not drawn.
NOT_METRICS = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')


def plot_curves(work_dir: str | Path) -> Path:
    """Draw loss, metrics, learning rate and lambda of a run.

    Reads ``WORK_DIR/*/vis_data/scalars.json``, which mmengine wrote. Where a
    run was resumed, the later file replaces the points of the earlier one
    from its own first point on.

    Args:
        work_dir (str | Path): The work dir of a run.

    Returns:
        Path: ``WORK_DIR/curves.png``, which was written.

    Raises:
        UserError: If there is no such folder, or no scalars in it.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise UserError(f'no folder {work_dir}: it should be the work dir of '
                        'a training run')
    curves, unit = read_curves(work_dir)
    metrics = [
        name for name in curves
        if name not in ('lr', 'base_lr', 'lambda', 'grad_norm')
        and not name.startswith(('loss', 'decode.', 'aux.'))
    ]
    panels = {'loss': ['loss'], 'metrics': metrics, 'learning rate': ['lr'],
              'lambda': ['lambda']}
    panels = {title: names for title, names in panels.items()
              if names and names[0] in curves}

    figure = Figure(figsize=(4 * len(panels), 3), layout='constrained')
    FigureCanvasAgg(figure)
    for i, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name in names:
            points = sorted(curves[name].items())
            # Markers, since a single point draws no line.
            axes.plot(*zip(*points), marker='.' if len(points) < 40 else None,
                      label=name)
        axes.set(title=title, xlabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(names) > 1 or title == 'metrics':
            axes.legend(fontsize='small')
    path = work_dir / 'curves.png'
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def read_curves(work_dir: Path) -> tuple[dict[str, dict[float, float]], str]:
    """Every scalar of a run: its values by epoch, or by iteration.

    Values that are logged during training are averaged over each epoch.

    Args:
        work_dir (Path): The work dir of a run.

    Returns:
        tuple: The curves by name, and 'epoch' or 'iteration'.

    Raises:
        UserError: If there are no scalars.
    """
    runs = [_read_lines(path) for path in
            sorted(work_dir.glob('*/vis_data/scalars.json'))]
    runs = [lines for lines in runs if lines]
    if not runs:
        raise UserError(f'{work_dir} holds no scalars of a training run, '
                        'which are in */vis_data/scalars.json')
    trained = [line for lines in runs for line in lines if 'lr' in line]
    by_epoch = all('epoch' in line for line in trained)
    curves = defaultdict(dict)
    for lines in runs:
        values = defaultdict(list)
        for line in lines:
            # Metrics have their epoch, or iteration, as `step` only.
            at = line.get('epoch' if by_epoch else 'iter', line.get('step'))
            for name, value in line.items():
                if name not in NOT_METRICS and isinstance(value, int | float):
                    values[name, at].append(value)
        if not values:
            continue
        start = min(at for _, at in values)
        for points in curves.values():
            for at in [x for x in points if x >= start]:
                del points[at]
        for (name, at), seen in values.items():
            curves[name][at] = sum(seen) / len(seen)
    return curves, 'epoch' if by_epoch else 'iteration'


def _read_lines(path: Path) -> list[dict]:
    lines = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            pass  # an incomplete last line, of a run that was killed
    # A test writes one line of metrics, and is not part of the curves.
    return lines if any('lr' in line for line in lines) else []
