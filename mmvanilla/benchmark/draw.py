# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The plot of latency against accuracy."""
from pathlib import Path

from ..utils.files import MARK
from .networks import OURS


def plot(result, path: Path) -> None:
    """Draw latency, as measured, against accuracy, as published.

    Args:
        result (Benchmark): The measurements; those of the first batch size
            with a published accuracy are drawn.
        path (Path): The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    batch = result.settings['batches'][0]
    figure = Figure(figsize=(8, 5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines: dict[tuple[str, str], list] = {}
    for m in result.measurements:
        if m.batch != batch or not m.accuracy:
            continue
        family = 'VanillaNet' if m.model in OURS else m.model.split('-')[0]
        lines.setdefault((family, m.label), []).append(m)
    # One colour for each form, in all networks.
    colors: dict[str, str] = {}
    fastest: dict[str, object] = {}
    for (family, label), points in lines.items():
        points.sort(key=lambda m: m.accuracy)
        color = colors.setdefault(label, f'C{len(colors)}')
        axes.plot([1e3 * m.median for m in points],
                  [m.accuracy for m in points],
                  'o-' if family == 'VanillaNet' else 's--',
                  color=color,
                  label=f'{family}: {label}')
        for m in points:
            if m.median < fastest.setdefault(m.model, m).median:
                fastest[m.model] = m
    for m in fastest.values():
        axes.annotate(
            m.model, (1e3 * m.median, m.accuracy),
            textcoords='offset points',
            xytext=(-4, 5),
            ha='right' if m.model in OURS else 'left',
            fontsize=7)
    axes.set_xlabel(f'latency, ms: batch {batch}, {result.machine["name"]}, '
                    f'{result.settings["threads"]} threads (measured)')
    axes.set_ylabel("ImageNet top-1, % (VanillaNet: the paper's; others: "
                    "mmpretrain's)", fontsize=8)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata=dict(Comment=MARK))
