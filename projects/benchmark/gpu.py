# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Inference on a GPU: forms of a network, their times, and their limit."""
import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from time import monotonic

import torch
import torch.nn.functional as F
from forms import BACKENDS, DTYPES, Cases, allow_tf32, count, parts, reason
from mmcv.cnn import fuse_conv_bn
from subjects import Subject
from torch import Tensor, nn

from mmvanilla.export import optimize_for_inference
from mmvanilla.reparam.compare import relative_error
from mmvanilla.utils.errors import UserError

TOLS = dict(fp32=1e-3, tf32=0.02, fp16=0.02, bf16=0.1)
IMAGES, FEW = 256, 32  # to compare the outputs of our kernels, of others
MARGIN = 0.1  # of the best class, in standard deviations of the scores
SIDE, COPIED = 8192, 2**31  # a matrix product's, and bytes of a copy
REPLAYS, SPAN = 20, 5e-3  # one sample: so many replays, or so many seconds
# Of the table, as measure.COLUMNS.
COLUMNS = (('ms', 'median', '.3f', 1e3), ('spread', 'spread', '.0%', 1),
           ('device ms', 'device_median', '.3f', 1e3),
           ('ratio', 'ratio', '.2f', 1), ('share', 'share', '.2f', 1),
           ('device share', 'device_share', '.2f', 1),
           ('images/s', 'throughput', '.0f', 1), ('error', 'error', '.1e', 1),
           ('labels', 'labels', '.1%', 1))
DEVICE = 'cuda'
Event = partial(torch.cuda.Event, enable_timing=True)
is_available, synchronize = torch.cuda.is_available, torch.cuda.synchronize


class Graph:
    """A CUDA graph of a network. Its outputs last until the next call."""

    def __init__(self, run: Callable, x: Tensor) -> None:
        self.run, self.x = run, x.clone()  # what the graph reads
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(self.x)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = run(self.x)
        self.replay = self.graph.replay

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        self.x.copy_(x)
        self.replay()
        return self.outputs


def elapsed(call: Callable, number: int = 1) -> float:
    """Seconds of a call, from an idle GPU until its work is done."""
    start, end = Event(), Event()
    synchronize()
    start.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / number


def timer(m: dict, call: Callable) -> Callable:
    """Adds a sample of a call, and one of its work without the launches."""

    def sample():
        if 'failed' in m:
            return
        try:
            allow_tf32(m['precision'])
            call()
            m.setdefault('seconds', []).append(elapsed(call))
            if getattr(call, 'replay', None):
                number = min(REPLAYS, int(SPAN / m['seconds'][-1]) or 1)
                m.setdefault('device_seconds', []).append(
                    elapsed(call.replay, number))
        except Exception as e:
            m['failed'] = reason(e)

    return sample


class Call:
    """A form of a network, called with another batch each time."""

    def __init__(self, network: nn.Module, form: str, precision: str,
                 batches: list[Tensor]) -> None:
        layout, name, compiler, graph = parts(form)
        kind = dict(dtype=DTYPES[precision], memory_format=(
            torch.channels_last if layout else torch.preserve_format))
        run = copy.deepcopy(network).to(**kind)
        self.batches = [x.to(**kind) for x in batches]
        self.inputs = itertools.cycle(self.batches)
        if name in BACKENDS:
            run = optimize_for_inference(run, self.batches[0], name)
        elif compiler:
            mode = 'default' if compiler == 'compile' else compiler
            if graph and compiler == 'max-autotune':
                mode += '-no-cudagraphs'
            run = torch.compile(run, dynamic=False, mode=mode)
        self.run = Graph(run, self.batches[0]) if graph else run
        # PyTorch's own graphs are captured at the second call.
        for x in self.batches[:3]:
            self.run(x)
        # What has a graph cannot be captured again: without a `replay`, calls
        # in a row are timed.
        self.replay = getattr(self.run, 'replay', self)
        if not graph and name not in BACKENDS and (
                compiler in (None, 'compile')):
            try:
                self.replay = Graph(self.run, self.batches[0]).replay
            except Exception:  # no time without launches, then
                self.replay = None

    def __call__(self) -> Sequence[Tensor]:
        return self.run(next(self.inputs))

    def compare(self, expected: Tensor, tol: float) -> dict[str, object]:
        """The relative error, and the share of equal labels."""
        # Copies, since the next call may overwrite the outputs.
        outputs = torch.cat([self.run(x)[0].double() for x in self.batches])
        best = expected.topk(2).values
        sure = best[:, 0] - best[:, 1] > MARGIN * expected.std(1)
        same = (outputs.argmax(1) == expected.argmax(1))[sure].double()
        error = relative_error(expected, outputs)
        if not error <= tol:
            raise UserError(f'the relative error is {error:.3g}, over {tol:g}')
        return dict(error=error, compared=len(same),
                    labels=same.mean().item() if len(same) else None)


@lru_cache(1)
def prepare(subject: Subject, device: torch.device, height: int,
            width: int) -> tuple[dict[str, nn.Module], Tensor, Tensor, dict]:
    """Networks, images, the images' outputs in float64, and counts."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False  # nothing is timed here
    new = partial(torch.randn, device=device)
    # Colors and shapes: images of noise would all have the same class.
    images = new(IMAGES, 3, 1, 1) + new(IMAGES, 3, height, width) / 2
    images += F.interpolate(new(IMAGES, 3, 7, 7), (height, width),
                            mode='bilinear')
    networks = subject.networks(images[:1], images[:64])
    for module in networks['merged'].modules():
        if type(module).__name__ == 'WindowMSA':  # makes masks in float32
            module.register_forward_pre_hook(_cast_mask, with_kwargs=True)
    networks['optimized'] = networks['merged'] if subject.arch else (
        fuse_conv_bn(copy.deepcopy(networks['plain'])))
    counts = {name: count(networks[name], images[:1])
              for name in networks.keys() & {'train', 'plain'}}
    double = copy.deepcopy(networks['merged']).double()
    expected = torch.cat([double(x.double())[0] for x in images.split(64)])
    # As users do whose images have one size.
    torch.backends.cudnn.benchmark = True
    return networks, images, expected, counts


def _cast_mask(module, args, kwargs):
    mask = kwargs.get('mask')
    if mask is not None:
        kwargs = dict(kwargs, mask=mask.to(args[0].dtype))
    return args, kwargs


def gpu_cases(subject: Subject, x: Tensor, forms: Sequence[tuple[str, str]],
              deadline: float) -> Cases:
    """Each form of a network, or why it failed."""
    for form, precision in forms:
        _, name, compiler, graph = parts(form)
        if name in ('train', 'triton') and not subject.arch:
            continue
        counted = source = name if name == 'train' else 'plain'
        if name in BACKENDS or not subject.arch and (compiler or graph):
            source = 'optimized'
        compared = max(IMAGES if name == 'triton' else FEW, 4 * len(x))
        order = torch.arange(compared // len(x) * len(x)) % IMAGES
        m = dict(model=subject.name, form=form, precision=precision,
                 batch=len(x), accuracy=subject.accuracy)
        call = None
        try:
            if monotonic() > deadline:
                raise UserError('no time was left')
            networks, images, expected, counts = prepare(
                subject, x.device, *x.shape[2:])
            m |= counts[counted]
            allow_tf32(precision)
            call = Call(networks[source], form, precision,
                        list(images[order].split(len(x))))
            m |= call.compare(expected[order], TOLS[precision])
        except Exception as e:
            m['failed'] = reason(e)
        yield m, call


def rates(precisions: set[str]) -> dict[str, float]:
    """Bytes per second of a copy, operations per second of a product."""
    a, b = (torch.rand(COPIED // 4, device=DEVICE) for _ in range(2))
    found = dict(copy=2 * a.nbytes / _median(lambda: b.copy_(a)))
    for precision in sorted(precisions):
        allow_tf32(precision)
        a = torch.randn(SIDE, SIDE, device=DEVICE).to(DTYPES[precision])
        b = torch.empty_like(a)
        found[precision] = 2 * SIDE**3 / _median(
            lambda a=a, b=b: torch.mm(a, a, out=b))
    return found


def _median(call: Callable) -> float:
    return statistics.median([elapsed(call) for _ in range(13)][3:])


def add_limit(m: dict, found: dict[str, float], pixels: int) -> None:
    """How long reading the weights, or the arithmetic, takes at least."""
    m['bytes'] = DTYPES[m['precision']].itemsize * (
        m['parameters'] + m['batch'] * (3 * pixels + 1000))
    m['limit'] = max(m['bytes'] / found['copy'],
                     2 * m['macs'] * m['batch'] / found[m['precision']])
    m['throughput'] = m['batch'] / m['median']
    m['share'] = m['limit'] / m['median']
    if 'device_median' in m:
        m['device_share'] = m['limit'] / m['device_median']


def properties() -> dict[str, object]:
    """What the results say of the GPU."""
    found = torch.cuda.get_device_properties()
    return dict(name=found.name, bytes=found.total_memory,
                l2_bytes=found.L2_cache_size, cuda=torch.version.cuda,
                multiprocessors=found.multi_processor_count,
                cudnn=torch.backends.cudnn.version(), cudnn_benchmark=True)
