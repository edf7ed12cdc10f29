# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import os.path as osp
import re

from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import METRICS

from ..utils.errors import UserError


@METRICS.register_module()
class ImageNetReaLAccuracy(Accuracy):
    """Accuracy on ImageNet and on its "reassessed labels" (ReaL).

    Beyer et al., arXiv 2006.07159: an image may have several valid classes,
    and any of them is correct. Images without a valid class are left out. The
    metrics are in percent: those of ``Accuracy`` (``accuracy/top1``) and
    ``accuracy/real``.

    Args:
        ann_file (str): ``real.json`` of github.com/google-research/
            reassessed-imagenet: a list that holds, for each validation image
            in the order of file names, the list of its valid classes.
        **kwargs: Arguments of mmpretrain's ``Accuracy``, such as ``topk``.

    Raises:
        UserError: If ``ann_file`` is not such a list, the number at the end
            of an image's name is not in it, or no image has a valid class.

    Example:
        ``tools/test.py CONFIG CHECKPOINT --cfg-options
        test_evaluator.type=ImageNetReaLAccuracy
        test_evaluator.ann_file=real.json``
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        try:
            with open(ann_file, encoding='utf-8') as f:
                self.labels = json.load(f)
        except (OSError, ValueError) as e:
            raise UserError(
                f'cannot read {ann_file} as ReaL labels: {e}') from e
        if not (isinstance(self.labels, list)
                and all(isinstance(valid, list) for valid in self.labels)):
            raise UserError(f'{ann_file} holds no ReaL labels: it must be a '
                            'list with a list of classes for each image')
        self.ann_file = ann_file

    def process(self, data_batch, data_samples: list[dict]) -> None:
        """Store scores, label and valid classes of each image."""
        super().process(data_batch, data_samples)
        for result, sample in zip(self.results[-len(data_samples):],
                                  data_samples):
            result['valid'] = self._valid_classes(sample)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the accuracies, in percent."""
        correct = [
            int(result['pred_score'].argmax()) in result['valid']
            for result in results if result['valid']
        ]
        if not correct:
            raise UserError('no image that was tested has a valid class in '
                            f'{self.ann_file}')
        metrics = super().compute_metrics(results)
        return dict(metrics, real=100 * sum(correct) / len(correct))

    def _valid_classes(self, sample: dict) -> list[int]:
        # ILSVRC2012_val_00000001.JPEG is the first of 50,000.
        name = osp.basename(sample.get('img_path') or '')
        number = re.search(r'(\d+)\.\w+$', name)
        if not number or not 1 <= int(number[1]) <= len(self.labels):
            raise UserError(
                f'{self.ann_file} has labels of {len(self.labels)} images, '
                'ILSVRC2012_val_00000001.JPEG and so on, and none of '
                f'"{name}"')
        return self.labels[int(number[1]) - 1]
