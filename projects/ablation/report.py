# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""An ablation as a table and as a plot, with the paper's figures."""
from pathlib import Path

from grid import Ablation, Row

from mmvanilla.utils.files import write_beside
from mmvanilla.utils.terminal import markdown_table


def write_report(ablation: Ablation, out: str | Path) -> list[Path]:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into a folder."""
    paths = [
        Path(out) / f'{ablation.name}.{kind}' for kind in ('md', 'json', 'png')
    ]
    with write_beside(*paths) as (table, data, image):
        table.write_text(make_table(ablation) + '\n')
        data.write_text(ablation.to_json())
        plot(ablation, image)
    return paths


def make_table(ablation: Ablation) -> str:
    """The results in Markdown; gains are over the first row of a group."""
    has_groups = any(row.group for row in ablation.rows)
    has_paper = any(row.paper is not None for row in ablation.rows)
    seeds = f'{ablation.seeds} seed' + 's' * (ablation.seeds > 1)
    header = ['network'] * has_groups + [
        'setting', f'digits, top-1 % ({seeds})', 'gain'
    ] + ['paper: ImageNet, top-1 %', 'gain'] * has_paper
    lines = []
    for rows in _groups(ablation).values():
        first = rows[0]
        for row in rows:
            spread = '' if row.std is None else f' ± {row.std:.2f}'
            gain = '' if row is first else f'{row.mean - first.mean:+.2f}'
            line = [row.group] * has_groups + [
                row.name, f'{row.mean:.2f}{spread}', gain]
            if has_paper:
                line += ['', ''] if row.paper is None else [
                    f'{row.paper:.2f}',
                    '' if row is first else f'{row.paper - first.paper:+.2f}']
            lines.append(tuple(line))
    return markdown_table(header, lines)


def plot(ablation: Ablation, path: Path) -> None:
    """Plot mean and standard deviation, and below them the paper's figures."""
    from matplotlib.figure import Figure
    groups = _groups(ablation)
    has_paper = any(row.paper is not None for row in ablation.rows)
    longest = max(len(row.name) for row in ablation.rows)
    figure = Figure(
        figsize=(2 + max(3, 0.8 * len(ablation.rows)),
                 3 + 2.5 * has_paper + 0.03 * longest), layout='constrained')
    axes = figure.subplots(
        1 + has_paper, len(groups), sharey='row', sharex='col', squeeze=False)
    for column, (group, rows) in enumerate(groups.items()):
        names = [row.name for row in rows]
        axes[0, column].set_title(group, fontsize=9)
        axes[0, column].errorbar(
            names, [row.mean for row in rows], [row.std or 0 for row in rows],
            fmt='o', capsize=4, color='C0')
        for row in rows:
            axes[0, column].plot([row.name] * len(row.accuracies),
                                 row.accuracies, '.', color='C0', alpha=0.35)
        if has_paper:
            axes[1, column].plot(names, [row.paper for row in rows], 's',
                                 color='C1')
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
        axes[-1, column].tick_params('x', rotation=45 if longest < 20 else 80)
        for label in axes[-1, column].get_xticklabels():
            label.set(ha='right', rotation_mode='anchor', fontsize=8)
    labels = [f'digits, top-1 %\nmean and deviation of {ablation.seeds} seeds',
              'ImageNet, top-1 %\nas the paper reports it']
    for axis, label in zip(axes[:, 0], labels):
        axis.set_ylabel(label, fontsize=8)
    figure.suptitle(ablation.title, fontsize=10)
    figure.savefig(path, dpi=110, metadata=dict(Software='mmvanilla'))


def _groups(ablation: Ablation) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in ablation.rows:
        groups.setdefault(row.group, []).append(row)
    return groups
