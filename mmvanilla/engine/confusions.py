# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Which classes a classifier confuses, and a picture of its worst images."""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmpretrain.evaluation import ConfusionMatrix

from ..utils.configs import scope_name
from ..utils.errors import UserError
from ..utils.files import check_output, write_beside
from ..utils.terminal import markdown_table
from .classes import class_names
from .fonts import font_for


class Confusions(BaseMetric):
    """Keep which class each image was taken for; gives no metric."""

    default_prefix = 'confusions'  # else mmengine warns that there is none

    def __init__(self, dataset) -> None:
        super().__init__()
        self.dataset, self.names = dataset, class_names(dataset)
        # Label and prediction, and the score of the label; main process.
        self.labels, self.scores = np.zeros((0, 2), int), np.zeros(0)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Store three numbers of each image; -1 if it has not one label."""
        for sample in data_samples:
            label = sample.get('gt_label', ())
            scores = sample.get('pred_score')
            one = scores is not None and len(label) == len(
                sample.get('pred_label', label)) == 1 and label < len(scores)
            self.results.append((
                label.item(), scores.argmax().item(), scores[label].item())
                if one else (-1, -1, 0))

    def compute_metrics(self, results: list) -> dict:
        """Keep what all processes have stored."""
        found = np.array(results).reshape(-1, 3)
        found = found if (found[:, 0] >= 0).all() else found[:0]
        self.labels, self.scores = found[:, :2].astype(int), found[:, 2]
        self.names += map(str, range(
            len(self.names), self.labels.max(initial=-1) + 1))
        return {}

    def pairs(self, most: int) -> list[str]:
        """The pairs of classes that are confused most often."""
        labels, names = self.labels.tolist(), self.names
        total = Counter(a for a, _ in labels)
        wrong = Counter((a, b) for a, b in labels if a != b)
        return [f'{names[a]} taken for {names[b]}: {n} of {total[a]}'
                for (a, b), n in wrong.most_common(most)]

    def report(self, runner, worst: tuple[int, Path] | None) -> None:
        """Log a table, or pairs of many classes; draw the worst images."""
        names, count = self.names, worst[0] if worst else 0
        if not len(self.labels):
            if worst:  # other processes than the main one log no warning
                runner.logger.warning('--worst is left out: it is for images '
                                      'with one label each')
            return
        text = '\n'.join(['Most confused classes:', *self.pairs(10)])
        if len(names) <= 30:
            rows = ConfusionMatrix.calculate(*self.labels.T[::-1], len(names))
            text = 'Annotated (rows), predicted (columns):\n' + markdown_table(
                ['', *names], [(name, *map(str, row.tolist()))
                               for name, row in zip(names, rows)])
        runner.logger.info(text)
        images, captions = [], []
        for i in self.scores.argsort(kind='stable')[:count].tolist():
            info = self.dataset.get_data_info(i)
            path = info.get('img_path', '')
            images.append(mmcv.imread(path, channel_order='rgb') if path
                          else np.asarray(info['img']))
            root = getattr(self.dataset, 'data_root', '')
            captions.append('label: {}\npredicted: {}\n{}'.format(
                *(names[x] for x in self.labels[i]),
                path.removeprefix(f'{root}/')[-30:]))  # where it is cut
        if worst:
            contact_sheet(images, captions, worst[1])
            runner.logger.info(f'The images of largest loss: {worst[1]}')


def watch(cfg: Config, loop) -> Confusions | None:
    """Add a ``Confusions`` to the evaluator of a classifier's loop."""
    evaluator = getattr(loop, 'evaluator', None)
    if scope_name(cfg) != 'mmpretrain' or not isinstance(evaluator, Evaluator):
        return None
    loop.dataloader.sampler.shuffle = False  # images are found by their place
    evaluator.metrics.append(Confusions(loop.dataloader.dataset))
    return evaluator.metrics[-1]


def find_worst(cfg: Config, number: str, folder: str) -> tuple[int, Path]:
    """Check the values of ``--worst``: a number, and a folder to write to."""
    if scope_name(cfg) != 'mmpretrain':
        raise UserError(f'--worst is for classification, but {cfg.filename} '
                        f'is for {scope_name(cfg)}')
    if not str(number).isdecimal() or not 1 <= int(number) <= 200:
        raise UserError('--worst takes a number of images, 1 to 200, and a '
                        f'folder, but the number is {number}')
    path = Path(folder, 'worst.png')
    if path.exists():
        raise UserError(f'--worst: {path} exists: give another folder')
    path.parent.mkdir(parents=True, exist_ok=True)
    check_output(path)
    return int(number), path


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str],
                  path: str | Path) -> None:
    """Draw images, RGB or grey, with captions below them, to a PNG file."""
    from matplotlib.figure import Figure
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    with font_for(captions), write_beside(path) as (written, ):
        height = 2.2 * max(x.shape[0] / x.shape[1] for x in images)
        figure = Figure((2.2 * columns, (0.5 + min(height, 4)) * rows),
                        dpi=150)
        figure.subplots_adjust(hspace=0.4)
        for i, (image, caption) in enumerate(zip(images, captions), 1):
            axes = figure.add_subplot(rows, columns, i, xticks=[], yticks=[])
            axes.imshow(mmcv.imrescale(image, (300, 300)), 'gray', vmin=0,
                        vmax=255)
            axes.set_xlabel('\n'.join(
                line[:30] for line in caption.splitlines()), fontsize=6)
        figure.savefig(written, bbox_inches='tight')
