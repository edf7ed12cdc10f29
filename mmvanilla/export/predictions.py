# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Agreement of an exported model's predictions with the toolbox's."""
from dataclasses import dataclass, field

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ..reparam.verify import OutputComparison, match_detections
from ..utils.errors import UserError


@dataclass
class PredictionComparison:
    """Predictions of an exported model, compared with the toolbox's.

    Two detections match if they have the same label, corners within 0.1 px
    and scores within 1e-3.

    Attributes:
        logits (OutputComparison): A segmentor's logits.
        random (bool): Whether the images are random.
        samples (int): How many images were compared.
        skipped (int): How many were larger than the network's input.
        counts (dict): For 'detections matched', 'mask pixels equal' and
            'pixels with the same label': the number in all, and the number of
            those that match.
        max_box (float): Largest difference of matched boxes, in pixels.
        max_score (float): Largest difference of their scores.
        metrics (dict): Each of the config's metrics, of the toolbox and of
            the exported model; empty unless the whole validation set was
            compared.
    """

    logits: OutputComparison
    random: bool = False
    samples: int = 0
    skipped: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    max_box: float = 0.0
    max_score: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    BOX_TOL = 0.1
    SCORE_TOL = 1e-3
    MIN_SHARE = 0.99

    def add_detections(self, a: InstanceData, b: InstanceData) -> None:
        """Match detections of one image.

        Args:
            a (InstanceData): The toolbox's.
            b (InstanceData): The exported model's.
        """
        pairs = match_detections(a, b, self.BOX_TOL, self.SCORE_TOL)
        for i, j in pairs:
            box = (b.bboxes[j] - a.bboxes[i]).abs().max().item()
            score = (b.scores[j] - a.scores[i]).abs().item()
            self.max_box = max(self.max_box, box)
            self.max_score = max(self.max_score, score)
            if 'masks' in b:
                # Of the pixels in either mask: the background is alike in any
                # two.
                masks = [
                    torch.as_tensor(x) for x in (a.masks[i], b.masks[j])
                ]
                self._count('mask pixels equal',
                            (masks[0] | masks[1]).sum(),
                            (masks[0] & masks[1]).sum())
        # A detection of the exported model alone is a difference too.
        self._count('detections matched', len(a) + len(b) - len(pairs),
                    len(pairs))

    def add_labels(self, a: Tensor, b: Tensor) -> None:
        """Compare label maps of one image, of integers in equal shapes."""
        self._count('pixels with the same label', a.numel(), (a == b).sum())

    def _count(self, name: str, total: int, equal: int) -> None:
        counts = self.counts.setdefault(name, [0, 0])
        counts[0] += int(total)
        counts[1] += int(equal)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each finding."""
        kind = 'random images' if self.random else 'real samples'
        rows = [('compared with the toolbox on', f'{self.samples} {kind}')]
        if self.logits.count:
            rows.append(('maximum relative error of the logits',
                         f'{self.logits.max_rel:.3g}'))
        for name, (total, equal) in self.counts.items():
            rows.append((name, f'{equal:,} of {total:,}'))
        if 'detections matched' in self.counts:
            rows += [('largest difference of a box', f'{self.max_box:.3g} px'),
                     ('largest difference of a score',
                      f'{self.max_score:.3g}')]
        rows += [(name, f'{before:.4g} before, {after:.4g} after')
                 for name, (before, after) in self.metrics.items()]
        if self.skipped:
            rows.append(("larger than the network's input, left out",
                         f'{self.skipped}'))
        return rows

    def check(self, precision: str, max_drop: float) -> None:
        """Refuse predictions that differ, or images without predictions.

        In fp32 99 % of the predictions must be the same, and a segmentor's
        logits up to their tolerance. bf16 and int8 may lower the config's
        metrics.

        Args:
            precision (str): 'fp32', 'bf16' or 'int8'.
            max_drop (float): The maximum allowed drop of AP or mIoU in bf16
                and int8, in percentage points.

        Raises:
            UserError: If there are no predictions, or they differ by more.
        """
        what = 'the exported file'
        if not any(total for total, _ in self.counts.values()):
            raise UserError('comparing the exported file: the toolbox '
                            f'predicts nothing on {self.samples} images; '
                            'lower model.test_cfg.score_thr')
        if precision != 'fp32':
            self._check_metrics(precision, max_drop)
            return
        if self.logits.count:
            self.logits.check(what)
        for name, (total, equal) in self.counts.items():
            if equal < self.MIN_SHARE * total:
                raise UserError(f'{what} predicts otherwise than the toolbox: '
                                f'{name}: {equal:,} of {total:,}')

    def _check_metrics(self, precision: str, max_drop: float) -> None:
        judged = {name: values for name, values in self.metrics.items()
                  if name.endswith(('mAP', 'mIoU'))}
        if not judged:
            raise UserError(
                f'{precision} is judged by AP or mIoU, and none was measured: '
                'compare on the whole validation set (--samples), whose '
                "images must fit the network's input, with a val_evaluator "
                'that gives one of them')
        for name, (before, after) in judged.items():
            # mmdet's AP is from 0 to 1, mmseg's mIoU in per cent.
            scale = 1 if name.endswith('mIoU') else 100
            drop = scale * (before - after)
            if not drop <= max_drop:
                raise UserError(
                    f'{precision} lowers {name} by {drop:.2f} points, from '
                    f'{before:.4g} to {after:.4g}, more than --max-drop '
                    f'{max_drop:g}')
