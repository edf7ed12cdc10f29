# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare a converted model with its reference, output by output."""
import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..layers.forms import find_layers
from ..utils.errors import UserError
from .verify import OutputComparison, PredictionAgreement


@dataclass
class ModelComparison:
    """Result of :func:`compare_models`.

    Attributes:
        outputs (OutputComparison): Outputs of the modules, sample by sample.
        predictions (PredictionAgreement): The models' predictions.
        samples (int): Number of samples.
    """

    outputs: OutputComparison
    predictions: PredictionAgreement = field(
        default_factory=PredictionAgreement)
    samples: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each result, for a table."""
        return [('maximum absolute difference', f'{self.outputs.max_abs:.3g}'),
                ('maximum relative error', f'{self.outputs.max_rel:.3g}'),
                ('tolerance', f'{self.outputs.tol:g}'),
                *self.predictions.rows()]


def compare_models(reference: nn.Module, converted: nn.Module,
                   batches: list[dict], tol: float,
                   what: str) -> ModelComparison:
    """Refuse a converted model that differs from its reference.

    Compared are

    - the weights of modules that are not converted, bit by bit;
    - each converted layer alone, in float64, on zeros and on noise, which
      shows errors that are too small to change a network's outputs;
    - sample by sample, the outputs of backbone and neck (feature maps) and of
      every module with weights in the heads (logits, box regressions, ...).
      In both models, heads that take proposals get those of the reference;
    - the predictions.

    Args:
        reference (nn.Module): A model of any toolbox, in eval mode.
        converted (nn.Module): The same model in a later form, in eval mode.
        batches (list[dict]): Batches as data loaders yield them.
        tol (float): The maximum allowed relative error of an output.
        what (str): What is compared; messages begin with it.

    Returns:
        ModelComparison: The errors and the agreement of predictions.

    Raises:
        UserError: If the models differ, or nothing could be compared.
    """
    _compare_weights(reference, converted, what)
    _compare_layers(reference, converted, what)
    comparison = ModelComparison(OutputComparison(tol))
    watch = _Watch(reference, comparison.outputs)
    for batch in batches:
        for i in range(len(batch['inputs'])):
            sample = {k: v[i:i + 1] for k, v in batch.items()}
            pairs = _predict(reference, converted, sample, watch)
            for pair in pairs:
                comparison.samples += 1
                comparison.predictions.add(*pair)
    comparison.outputs.check(what)
    watch.check(what)
    comparison.predictions.check(what)
    return comparison


def _compare_weights(reference: nn.Module, converted: nn.Module,
                     what: str) -> None:
    inside = tuple(f'{name}.' if name else '' for name in find_layers(
        reference))
    weights, others = reference.state_dict(), converted.state_dict()
    for key in weights.keys() | others.keys():
        if key.startswith(inside):
            continue
        if key not in weights or key not in others or not torch.equal(
                weights[key], others[key]):
            raise UserError(f'{what}: {key} has changed, although it belongs '
                            'to no converted layer')


# Maximum allowed relative error of a layer in float64. Weights rounded to
# float32 cause errors of about 1e-7.
LAYER_TOL = 1e-5


def _compare_layers(reference: nn.Module, converted: nn.Module,
                    what: str) -> None:
    comparison = OutputComparison(LAYER_TOL)
    generator = torch.Generator().manual_seed(0)
    for name, layer in find_layers(reference).items():
        # The first convolution of a layer has the layer's input channels.
        conv = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
        size = [d * (k - 1) + 3 for k, d in zip(conv.kernel_size,
                                                conv.dilation)]
        noise = torch.randn(
            1, conv.in_channels, *size, generator=generator).double()
        pair = [copy.deepcopy(m).double()
                for m in (layer, converted.get_submodule(name))]
        with torch.no_grad():
            for x in (torch.zeros_like(noise), noise):
                comparison.add(name, *(module(x.clone()) for module in pair))
    comparison.check(what)


def _predict(reference: nn.Module, converted: nn.Module, sample: dict,
             watch: '_Watch') -> list[tuple]:
    """Pairs of predictions; ``watch`` compares the modules' outputs."""
    predictions, proposals = [], []
    with torch.no_grad():
        for model in (reference, converted):
            with watch.run(model, model is reference), _same_proposals(
                    model, proposals):
                results = model.test_step(copy.deepcopy(sample))
            if proposals:  # then predict_bbox was replaced: predict again
                results = model.test_step(copy.deepcopy(sample))
            predictions.append(results)
    return list(zip(*predictions, strict=True))


class _Watch:
    """Compare the modules' outputs of two models that run in turn."""

    def __init__(self, model: nn.Module, comparison: OutputComparison):
        self.comparison = comparison
        self.names = _compared_modules(model)
        self.kept: dict[tuple, list[Tensor]] = {}
        self.uneven = ''  # a module whose number of outputs differs
        self.inputs: dict[str, set[float]] = {}

    @contextmanager
    def run(self, model: nn.Module, is_reference: bool) -> Iterator[None]:
        calls: dict[str, int] = {}

        def hook(name, module, args, output) -> None:
            call = calls[name] = calls.get(name, 0) + 1
            tensors = list(_tensors(output))
            if is_reference:
                self.kept[name, call] = [t.clone() for t in tensors]
                self.inputs.setdefault(name, set()).add(
                    sum(t.double().norm().item() for t in _tensors(args)))
                return
            expected = self.kept.pop((name, call), [])
            if len(expected) != len(tensors):
                self.uneven = name
            for i, pair in enumerate(zip(expected, tensors)):
                self.comparison.add(f'output {i + 1} of call {call} of {name}',
                                    *pair)

        with ExitStack() as stack:
            for name in self.names:
                handle = model.get_submodule(name).register_forward_hook(
                    partial(hook, name))
                stack.callback(handle.remove)
            yield
        if not is_reference:
            for name, _ in self.kept:
                self.uneven = name
            self.kept.clear()

    def check(self, what: str) -> None:
        if self.uneven:
            raise UserError(f'{what}: {self.uneven} has another number of '
                            'outputs than in the reference')
        for output in self.comparison.constant:
            name = output.rpartition(' ')[2]
            if len(self.inputs[name]) > 1:
                raise UserError(f'{what}: the reference outputs of {name} are '
                                'the same for all samples, so that comparing '
                                'them shows nothing')


def _compared_modules(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are compared.

    These are backbone and neck and, outside of them, converted layers,
    modules at the top level and modules with weights of their own.
    """
    layers = [name for name in find_layers(model) if name]
    whole = ('backbone', 'neck', 'data_preprocessor', *layers)
    inside = tuple(f'{name}.' for name in whole)
    return [
        name for name, module in model.named_modules()
        if name and name != 'data_preprocessor' and not name.startswith(inside)
        and (name in whole or '.' not in name
             or any(True for _ in module.parameters(recurse=False)))
    ]


def _tensors(output) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


@contextmanager
def _same_proposals(model: nn.Module, proposals: list) -> Iterator[None]:
    """Give a two-stage detector's second stage the first model's proposals.

    The first model appends its proposals to the empty list. A mask head gets
    some of them too, instead of the detections.
    """
    if not hasattr(model, 'roi_head') or not hasattr(model, 'rpn_head'):
        yield
        return

    def predict(*args, **kwargs):
        own = type(model.rpn_head).predict(model.rpn_head, *args, **kwargs)
        if not proposals:
            proposals.extend(copy.deepcopy(own))
        return copy.deepcopy(proposals)

    def predict_bbox(*args, **kwargs):
        type(model.roi_head).predict_bbox(model.roi_head, *args, **kwargs)
        return [
            InstanceData(
                bboxes=p.bboxes[:16].clone(),
                scores=p.scores[:16].clone(),
                labels=torch.zeros_like(p.scores[:16], dtype=torch.long))
            for p in proposals
        ]

    model.rpn_head.predict = predict
    model.roi_head.predict_bbox = predict_bbox
    try:
        yield
    finally:
        del model.rpn_head.predict, model.roi_head.predict_bbox
