# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import re
from pathlib import Path

from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import METRICS

from ..utils.errors import UserError


@METRICS.register_module()
class ImageNetReaLAccuracy(Accuracy):
    """Accuracy on ImageNet and on its "reassessed labels" (ReaL).

    Beyer et al., arXiv 2006.07159: an image may have several valid classes,
    and any of them is correct; without one it is left out. The metrics, in
    percent, are those of ``Accuracy`` (``accuracy/top1``) and
    ``accuracy/real``.

    Args:
        ann_file (str): ``real.json`` of github.com/google-research/
            reassessed-imagenet: a list that holds, for each validation image
            in the order of file names, the list of its valid classes.
        **kwargs: Arguments of mmpretrain's ``Accuracy``, such as ``topk``.

    Raises:
        UserError: If ``ann_file`` is not such a list, has no entry for the
            number of an image, or no image has a valid class.

    Example: ``tools/test.py CONFIG CHECKPOINT --cfg-options
    test_evaluator.type=ImageNetReaLAccuracy test_evaluator.ann_file=FILE``
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        try:
            self.labels = json.loads(Path(ann_file).read_text('utf-8'))
        except (OSError, ValueError) as e:
            raise UserError(
                f'cannot read {ann_file} as ReaL labels: {e}') from e
        if not isinstance(self.labels, list) or not all(
                isinstance(valid, list) for valid in self.labels):
            raise UserError(f'{ann_file} holds no ReaL labels: it must be a '
                            'list with a list of classes for each image')
        self.ann_file = ann_file

    def process(self, data_batch, data_samples: list[dict]) -> None:
        """Store scores, label and valid classes of each image."""
        super().process(data_batch, data_samples)
        new = self.results[-len(data_samples):]
        for result, sample in zip(new, data_samples):
            # ILSVRC2012_val_00000001.JPEG is the first of 50,000.
            name = Path(sample.get('img_path') or '').name
            number = re.search(r'(\d+)\.\w+$', name)
            if not number or not 1 <= int(number[1]) <= len(self.labels):
                raise UserError(
                    f'{self.ann_file} has labels of {len(self.labels)} images,'
                    ' ILSVRC2012_val_00000001.JPEG and so on, and none of '
                    f'"{name}"')
            result['valid'] = self.labels[int(number[1]) - 1]

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the accuracies, in percent."""
        correct = [int(x['pred_score'].argmax()) in x['valid']
                   for x in results if x['valid']]
        if not correct:
            raise UserError('no image that was tested has a valid class in '
                            f'{self.ann_file}')
        real = 100 * sum(correct) / len(correct)
        return dict(super().compute_metrics(results), real=real)
