# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The forms of a network that are timed, for inference and for training."""
import copy
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from subjects import Subject
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.export import optimize
from mmvanilla.export.exported import Exported
from mmvanilla.export.formats import FORMATS, check_format, write
from mmvanilla.reparam.compare import Result, compare
from mmvanilla.utils.errors import UserError

DTYPES = dict(fp32=torch.float32, tf32=torch.float32, fp16=torch.float16,
              bf16=torch.bfloat16)
# Forms for inference. A whole detector or segmentor has only some of them.
WHOLE = ('train', 'plain', 'channels_last', 'onnxruntime', 'openvino')
FORMS = (*WHOLE, 'eager', 'inductor', 'aoti')
TRAINED = ('plain', 'train', 'with_cp', 'finetune')  # forms for training
BACKENDS = ('triton', 'inductor')  # of optimize_for_inference, on a GPU
SPLIT = re.compile(r'(channels_last)?-?(plain|train|with_cp|finetune)?-?'
                   r'(compile|reduce-overhead|max-autotune)?-?(graph)?')
# form: its format in mmvanilla.export
EXPORTED = dict(onnxruntime='onnx', openvino='openvino', aoti='aoti')
TOL = 1e-3  # of the relative error of a form's outputs, in fp32

Cases = Iterator[tuple[dict, Callable]]  # what to report, what to time


def parts(form: str) -> Sequence[str | None]:
    """Split a form: layout, network, compiler, graph; None where missing."""
    if form in BACKENDS:
        return None, form, None, None
    match = SPLIT.fullmatch(form)
    found = match.groups() if match and form else ()
    return found if '-'.join(filter(None, found)) == form else ()


def parse_form(text: str, dtype: str, device: str,
               train: bool) -> tuple[str, str]:
    """Split 'openvino:int8' into form and precision, if it runs here."""
    form, _, precision = text.partition(':')
    precision = precision or dtype
    if train or device == 'cuda':
        _, network, compiler, graph = parts(form) or 4 * ('', )
        wrong = network == '' or precision not in DTYPES or (
            network in BACKENDS or graph or compiler not in (None, 'compile')
            if train else network in TRAINED[2:]
            or graph and compiler == 'reduce-overhead')
        if wrong or device == 'cpu' and precision in ('tf32', 'fp16') or (
                form == 'triton' and DTYPES[precision].itemsize > 2):
            raise UserError(f'there is no {form} in {precision} here; --help '
                            'shows which forms there are')
        return form, precision
    if form not in FORMS or precision not in ('fp32', 'bf16', 'int8'):
        raise UserError(
            f'a form is one of {", ".join(FORMS)}, with :fp32, :bf16 or :int8 '
            f'appended where its precision is not --dtype, but got {text}')
    if form in EXPORTED:
        check_format(EXPORTED[form], precision)
    elif precision == 'int8' or form == 'eager' and precision != 'fp32':
        raise UserError(f'{form} has no {precision}')
    if form == 'inductor':
        optimize.check_compiler()
    return form, precision


def inference_cases(subject: Subject, x: Tensor,
                    forms: Sequence[tuple[str, str]], folder: Path,
                    threads: int) -> Cases:
    """Each form of a network, and a call of it on one batch."""
    networks = subject.networks(x)
    networks['channels_last'] = networks['plain']
    merged, first = networks['merged'], None
    for form, precision in forms:
        if form == 'train' and form not in networks:
            continue
        data = x
        if form in EXPORTED:
            # A folder for each: other networks may have the same form.
            path = Path(tempfile.mkdtemp(dir=folder),
                        'net' + FORMATS[EXPORTED[form]].suffix)
            write(merged, x, path, EXPORTED[form], precision,
                  calibration=list(x.split(1)) * max(8 // len(x), 1))
            run = Exported(path, EXPORTED[form], threads)
        else:
            run = networks.get(form, merged)
            data = x.to(DTYPES[precision])
            if precision != 'fp32':
                run = copy.deepcopy(run).to(DTYPES[precision])
            if form in ('inductor', 'eager'):
                run = optimize.optimize_for_inference(run, data, form)
            if form == 'channels_last':
                run = copy.deepcopy(run).to(memory_format=torch.channels_last)
                data = data.contiguous(memory_format=torch.channels_last)
        result = _result_of(merged, run, data)
        first = first or result
        compare(first, result, [{}], TOL, precision,
                what=f'{form} of {subject.name} in {precision} is not timed')
        counted = networks['train' if form == 'train' else 'merged']
        yield dict(
            model=subject.name, form=form, precision=precision, batch=len(x),
            accuracy=subject.accuracy, **count(counted, x[:1])
        ), lambda run=run, x=data: run(x)


def _result_of(merged: nn.Module, run: Callable, x: Tensor) -> Callable:
    """What is compared of a form: its detections, or its outputs."""

    def call(_):
        outputs = [out.float() for out in run(x)]
        if 'boxes' not in merged.output_names:
            return Result(dict(zip(merged.output_names, outputs)))
        return Result({}, BaseDataElement(pred_instances=InstanceData(
            **dict(zip(('bboxes', 'scores', 'labels'), outputs)))))

    return call


def count(network: nn.Module, x: Tensor, passes: int = 1) -> dict[str, int]:
    """Count parameters, and multiply-accumulates of forward passes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return dict(parameters=sum(p.numel() for p in network.parameters()),
                macs=passes * counter.get_total_flops() // 2)


def training_cases(subject: Subject, x: Tensor,
                   forms: Sequence[tuple[str, str]],
                   deadline: float = float('inf')) -> Cases:
    """Each form of a network, and a training step on one batch."""
    networks = subject.training_networks(x)
    for form, precision in forms:
        layout, name, compiler, _ = parts(form)
        if (name or 'plain') not in networks:
            continue
        network = copy.deepcopy(networks[name or 'plain'])
        # A backward pass multiplies twice as much as a forward pass.
        m = dict(model=subject.name, form=form, precision=precision,
                 batch=len(x), **count(network.eval(), x[:1], passes=3))
        kind = dict(memory_format=(
            torch.channels_last if layout else torch.preserve_format))
        step = None
        try:
            if monotonic() > deadline:
                raise UserError('no time was left')
            allow_tf32(precision)
            network = network.train().to(**kind)
            if compiler:
                network = torch.compile(network, dynamic=False)
            step = TrainingStep(network, x.to(**kind), precision)
            # The first step makes the gradients and the optimizer's state.
            step()
            m['memory'] = step.memory()
        except Exception as e:
            if not x.is_cuda:
                raise
            m['failed'] = reason(e)
        yield m, step


def allow_tf32(precision: str) -> None:
    """Let float32 products on a GPU use TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'


def reason(error: Exception) -> str:
    """One line on a form that failed."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


class TrainingStep:
    """Forward, backward and AdamW on one batch, at every call."""

    def __init__(self, network: nn.Module, x: Tensor, dtype: str) -> None:
        self.network, self.x = network, x
        self.target = torch.rand(len(x), 1000, device=x.device)
        self.autocast = torch.autocast(
            x.device.type, DTYPES[dtype], enabled=dtype in ('fp16', 'bf16'))
        # Small enough that the first steps are not skipped.
        self.scaler = torch.amp.GradScaler(
            x.device.type, init_scale=1024, enabled=dtype == 'fp16')
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def loss(self) -> Tensor:
        with self.autocast:
            (output, ) = self.network(self.x)
        return F.binary_cross_entropy_with_logits(output.float(), self.target)

    def memory(self) -> dict[str, int]:
        """Bytes of each kind; the parameters include buffers."""
        parameters = list(self.network.parameters())
        kinds = dict(
            parameters=[*parameters, *self.network.buffers()],
            gradients=[p.grad for p in parameters],
            optimizer=[value for entry in self.optimizer.state.values()
                       for value in entry.values()])
        memory = {name: sum(t.nbytes for t in tensors if t is not None)
                  for name, tensors in kinds.items()}
        self.optimizer.zero_grad()
        memory['activations'], _ = _allocated(self.loss, self.x.is_cuda)
        _, peak = _allocated(self, self.x.is_cuda)
        memory['peak'] = memory['parameters'] + memory['optimizer'] + peak
        return memory


def _allocated(function: Callable, cuda: bool) -> tuple[int, int]:
    """Bytes that a call has allocated when it returns, and at its peak."""
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = function()
        held = torch.cuda.memory_allocated()
        del kept
        return held - before, torch.cuda.max_memory_allocated() - before
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        kept = function()
    del kept
    held = peak = 0
    for event in sorted(
            prof.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        held += event.nbytes() if event.name() == '[memory]' else 0
        peak = max(peak, held)
    return held, peak
