# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The forms of a network that are timed for inference, and a check of each.

Every form computes the same function of the same weights.
"""
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..export.backends import BACKENDS, check_backend, open_exported, write
from ..export.inference import BACKENDS as OPTIMIZED
from ..export.inference import check_compiler, optimize_for_inference
from ..export.predictions import PredictionComparison
from ..layers import switch_to_deploy
from ..reparam.verify import OutputComparison
from ..utils.errors import UserError
from .networks import PAPER_ACCURACY, Subject, peer, plain_like, vanillanet
from .report import FORMS, Measurement
from .whole_models import whole_networks

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)
# form: its format in mmvanilla.export
EXPORTED = dict(onnxruntime='onnx', openvino='openvino', aoti='aoti')
# Maximum allowed relative error of a form's outputs, against the first form.
MAX_ERROR = dict(fp32=1e-3, bf16=0.1, int8=0.5)

Case = tuple[Measurement, Callable[[], object]]


def parse_form(text: str, dtype: str, device: str) -> tuple[str, str]:
    """Split 'openvino' or 'openvino:int8' into form and precision.

    Args:
        text (str): A form, with ':' and a precision where it is not ``dtype``.
        dtype (str): The default precision, 'fp32' or 'bf16'.
        device (str): 'cpu' or 'cuda'.

    Raises:
        UserError: If there is no such form or precision, or it cannot be
            measured here.
    """
    form, _, precision = text.partition(':')
    if form not in FORMS or precision not in ('', 'fp32', 'bf16', 'int8'):
        raise UserError(
            f'a form is one of {", ".join(FORMS)}, with :fp32, :bf16 or :int8 '
            f'appended where its precision is not --dtype, but got {text}')
    precision = precision or dtype
    if form in EXPORTED:
        check_backend(EXPORTED[form], precision)
    elif precision == 'int8':
        raise UserError('int8 is for onnxruntime and openvino, not for '
                        f'{form}')
    if form == 'eager' and precision != 'fp32':
        raise UserError(f'eager is for fp32, not for {precision}')
    if form in (*EXPORTED, 'eager') and device != 'cpu':
        raise UserError(f'{form} is measured on the CPU only')
    if form == 'inductor':
        check_compiler()
    return form, precision


@torch.no_grad()
def inference_cases(subject: Subject, batch: int,
                    forms: Sequence[tuple[str, str]], folder: Path,
                    size: tuple[int, int], device: str,
                    threads: int) -> Iterator[Case]:
    """Each form of a network, ready to be called on one batch.

    Args:
        subject (Subject): The network. One of mmpretrain's has no train form.
        batch (int): Images at a time.
        forms (Sequence[tuple[str, str]]): From :func:`parse_form`.
        folder (Path): Folder for exported files.
        size (tuple[int, int]): Height and width of the images, in pixels.
        device (str): 'cpu' or 'cuda'.
        threads (int): Threads of other runtimes than PyTorch.

    Yields:
        Case: The measurement to fill in, and the call to time.

    Raises:
        UserError: If the network cannot be built, or the outputs of a form
            differ from those of the first form: by more than
            :data:`MAX_ERROR`, or in a detection.
    """
    # Networks compiled before would count towards the recompilation limit.
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(batch, 3, *size, device=device)
    networks, deployed, accuracy = _networks(subject, x)
    reference = None
    for form, precision in forms:
        if form == 'train' and 'train' not in networks:
            continue
        data = x
        if form in EXPORTED:
            run = _exported(deployed, x, form, precision, folder, threads)
        else:
            run = networks.get(form, deployed)
            data = x.to(DTYPES[precision])
            if precision != 'fp32':
                run = copy.deepcopy(run).to(DTYPES[precision])
            if form in OPTIMIZED:
                run = optimize_for_inference(run, data, form)
            if form == 'channels_last':
                run = copy.deepcopy(run).to(memory_format=torch.channels_last)
                data = data.contiguous(memory_format=torch.channels_last)
        outputs = run(data)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        reference = reference or outputs
        difference = _difference(deployed, reference, outputs, precision)
        if difference:
            raise UserError(f'{form} of {subject.name} in {precision} is not '
                            f'timed, since {difference}')
        counted = networks['train'] if form == 'train' else deployed
        yield Measurement(
            subject.name,
            form,
            precision,
            batch,
            parameters=sum(p.numel() for p in counted.parameters()),
            macs=count_macs(counted, x[:1]),
            accuracy=accuracy), _call(run, data)


def _networks(subject: Subject, x: Tensor
              ) -> tuple[dict[str, nn.Module], nn.Module, float | None]:
    """The networks in PyTorch by form, the merged one, and its accuracy."""
    accuracy = None
    if subject.config:
        networks = whole_networks(subject.config, x[:1].cpu())
        deployed = networks['plain']
    elif subject.arch is None:
        deployed, accuracy = peer(subject.name)
        networks = dict(plain=deployed)
    else:
        trained = vanillanet(subject.arch, deploy=False).eval()
        deployed = copy.deepcopy(trained)
        switch_to_deploy(deployed)
        networks = dict(
            train=trained, plain=plain_like(deployed, subject.arch).eval())
        accuracy = PAPER_ACCURACY.get(subject.arch)
    networks['channels_last'] = networks['plain']
    for network in (*networks.values(), deployed):
        network.to(x.device)
    return networks, deployed, accuracy


def _difference(network: nn.Module, reference: Sequence[Tensor],
                outputs: Sequence[Tensor], precision: str) -> str | None:
    """What is different in the outputs of a form; None where nothing is."""
    if not getattr(network, 'predicts', False) or (
            'boxes' not in network.output_names):
        error = (outputs[0].float() - reference[0]).norm(
        ) / reference[0].norm()
        return None if error < MAX_ERROR[precision] else (
            f'its outputs differ by {error:.3g}')
    comparison = PredictionComparison(OutputComparison(MAX_ERROR['fp32']))
    comparison.add_detections(*(InstanceData(
        **dict(zip(('bboxes', 'scores', 'labels'), found)))
        for found in (reference, outputs)))
    total, matched = comparison.counts['detections matched']
    return None if matched >= PredictionComparison.MIN_SHARE * total > 0 else (
        f'{matched} of {total} detections are the same')


def _exported(network: nn.Module, x: Tensor, form: str, precision: str,
              folder: Path, threads: int) -> Callable:
    format = EXPORTED[form]
    # A folder of its own: other networks may have the same form.
    path = Path(tempfile.mkdtemp(dir=folder), 'net' + BACKENDS[format].SUFFIX)
    calibration = None
    if precision == 'int8':
        calibration = list(x.split(1)) * max(8 // len(x), 1)
    write(network, x, path, format, precision, calibration=calibration)
    return open_exported(path, format, precision, threads)


def _call(function: Callable, *args) -> Callable[[], object]:
    return torch.no_grad()(lambda: function(*args))


def count_macs(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a forward pass of ``x``, (N, C, H, W)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() // 2
