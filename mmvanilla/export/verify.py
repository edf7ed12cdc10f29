# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare the outputs of an exported file, in its runtime, with PyTorch's."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..reparam.verify import OutputComparison
from ..utils.errors import UserError

# Minimum share of the samples with the same top-1 class, and the maximum
# allowed relative error in lower precision.
MIN_AGREEMENT = dict(fp32=0.99, bf16=0.98, int8=0.9)
ROUNDING = dict(bf16=0.1, int8=0.5)


@dataclass
class Verification:
    """How the outputs of an exported file compare with PyTorch's.

    Attributes:
        samples (int): How many samples were compared.
        random (bool): Whether they are random images.
        outputs (OutputComparison): The output tensors, sample by sample.
        agreement (float, optional): Share of the samples with the same top-1
            class; None where the outputs are feature maps.
        accuracy (dict): Top-1 accuracy in per cent, ``before`` and
            ``after``; empty where the samples have no labels.
    """

    samples: int
    random: bool
    outputs: OutputComparison
    agreement: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each finding."""
        kind = 'random images' if self.random else 'real samples'
        rows = [('compared with PyTorch on', f'{self.samples} {kind}'),
                ('maximum relative error', f'{self.outputs.max_rel:.3g}'),
                ('maximum absolute error', f'{self.outputs.max_abs:.3g}')]
        if self.agreement is not None:
            rows.append(('top-1 agreement', f'{100 * self.agreement:.2f} %'))
        return rows + [(f'accuracy {name}', f'{value:.2f} %')
                       for name, value in self.accuracy.items()]


@torch.no_grad()
def verify(reference: nn.Module,
           run: Callable[[Tensor], list[Tensor]],
           inputs: Sequence[Tensor],
           labels: Sequence[int | None],
           precision: str = 'fp32',
           tol: float = 1e-4,
           max_drop: float = 1.0,
           random: bool = False,
           dynamic_batch: bool = False,
           dynamic_size: bool = False) -> Verification:
    """Compare an exported file with the network as it was before merging.

    The relative error of every output tensor of every sample is at most
    ``tol`` in fp32 and :data:`ROUNDING` in bf16 and int8. On real samples a
    classifier's top-1 class must be the same for :data:`MIN_AGREEMENT` of
    them, and in bf16 and int8 its accuracy may drop by ``max_drop``.

    Args:
        reference (Network): The network in PyTorch, in eval mode.
        run (Callable): The opened file, from (N, C, H, W) to a list.
        inputs (Sequence[Tensor]): Samples, each (1, C, H, W).
        labels (Sequence[int | None]): The label of each sample, or None.
        precision (str): The file's precision. Defaults to 'fp32'.
        tol (float): The maximum allowed relative error in fp32, as
            ||output - reference|| / ||reference||. Defaults to 1e-4.
        max_drop (float): The maximum allowed drop of the accuracy in bf16 and
            int8, in percentage points. Defaults to 1.0.
        random (bool): Whether the samples are random images.
            Defaults to False.
        dynamic_batch (bool): Whether to compare a batch of three as well.
            Defaults to False.
        dynamic_size (bool): Whether to compare two other image sizes as
            well. Defaults to False.

    Returns:
        Verification: The errors, the agreement and the accuracy.

    Raises:
        UserError: If the outputs differ by more, or there was nothing to
            compare.
    """
    outputs = OutputComparison(ROUNDING.get(precision, tol))
    found = Verification(len(inputs), random, outputs)
    same = labelled = before = after = 0

    def compare(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        expected, got = reference(x), run(x)
        if len(expected) != len(got):
            raise UserError(f'the exported file has {len(got)} outputs, not '
                            f'{len(expected)}')
        for name, a, b in zip(reference.output_names, expected, got):
            same_batch = len(a) == len(b)
            pairs = zip(a.split(1), b.split(1)) if same_batch else [(a, b)]
            for row_a, row_b in pairs:
                outputs.add(name, row_a, row_b)
        return expected, got

    for x, label in zip(inputs, labels, strict=True):
        expected, got = compare(x)
        if not reference.is_classifier:
            continue
        a, b = expected[0].argmax().item(), got[0].argmax().item()
        same += a == b
        if label is not None:
            labelled += 1
            before += a == label
            after += b == label
    if dynamic_batch and inputs:
        compare(torch.cat([inputs[i % len(inputs)] for i in range(3)]))
    if dynamic_size and inputs:
        height, width = inputs[0].shape[2:]
        for size in ((height + 32, width), (height, width + 33)):
            compare(nn.functional.interpolate(inputs[0], size))

    if reference.is_classifier and inputs:
        found.agreement = same / len(inputs)
    if labelled:
        found.accuracy = dict(
            before=100 * before / labelled, after=100 * after / labelled)
    outputs.check('comparing the exported file with PyTorch')
    _check_predictions(found, precision, max_drop)
    return found


def _check_predictions(found: Verification, precision: str,
                       max_drop: float) -> None:
    if found.random or found.agreement is None:
        return
    if found.agreement < MIN_AGREEMENT[precision]:
        raise UserError(
            f'the exported file predicts other classes than PyTorch for '
            f'{100 * (1 - found.agreement):.2f} % of {found.samples} samples; '
            f'at least {100 * MIN_AGREEMENT[precision]:g} % must be the same')
    if precision == 'fp32' or not found.accuracy:
        return
    drop = found.accuracy['before'] - found.accuracy['after']
    if not drop <= max_drop:
        raise UserError(
            f'{precision} lowers the accuracy by {drop:.2f} points, from '
            f'{found.accuracy["before"]:.2f} %, more than --max-drop '
            f'{max_drop:g}')
