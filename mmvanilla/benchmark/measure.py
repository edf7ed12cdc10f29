# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Latency of each form of a network, compared with the machine's peak rate.

All forms of a network are timed in turns in one process, so that other load
on the machine affects all of them alike. The product of two matrices of 2048 x
2048 is timed with them; its rate is the peak that a network could reach.
``share`` is the rate of a network's multiplications over that peak.
"""
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.utils import ProgressBar

from ..utils.errors import UserError
from ..version import __version__
from .forms import DTYPES, Case, inference_cases, parse_form
from .networks import resolve
from .report import SIDE, Benchmark, Measurement
from .training import training_cases
from .whole_models import check_whole


def benchmark(models: Sequence[str],
              forms: Sequence[str] = ('plain', 'eager'),
              batches: Sequence[int] = (1, ),
              threads: int | None = None,
              dtype: str = 'fp32',
              device: str = 'cpu',
              size: int | Sequence[int] = 224,
              repeats: int = 20,
              warmup: int = 2,
              train: bool = False,
              together: bool = False,
              progress: bool = True) -> Benchmark:
    """Time forms of networks, in turns.

    Args:
        models (Sequence[str]): '6', 'VanillaNet-6', 'ResNet-50', any name
            that mmpretrain's ``get_model`` knows, or the config of a detector
            or segmentor, as a path or as 'mmdet::...'. A whole model is timed
            for inference, in fp32, with one image at a time.
        forms (Sequence[str]): 'train', 'plain', 'channels_last', 'eager',
            'inductor', 'aoti', 'onnxruntime' or 'openvino', each with
            ':fp32', ':bf16' or ':int8' appended where its precision is not
            ``dtype``. 'train' is left out for a network of mmpretrain's. Not
            read for training, which has 'plain', 'train', 'with_cp' and
            'finetune'. Defaults to ('plain', 'eager').
        batches (Sequence[int]): Batch sizes. Defaults to (1, ).
        threads (int, optional): Threads to compute with. Defaults to None:
            PyTorch's own default.
        dtype (str): Default precision of the forms, 'fp32' or 'bf16' (for
            training, autocast). Defaults to 'fp32'.
        device (str): 'cpu' or 'cuda'. Defaults to 'cpu'.
        size (int | Sequence[int]): Side of the images, or their height and
            width, in pixels. Defaults to 224.
        repeats (int): Timed calls of each form. Defaults to 20.
        warmup (int): Turns before the first timed one. Defaults to 2.
        train (bool): Whether to measure a training step (forward, backward
            and AdamW) and its memory instead. Defaults to False.
        together (bool): Whether all networks are timed in turns, to compare
            one with another, and not one after the other, which needs less
            memory. Defaults to False.
        progress (bool): Whether to show a progress bar. Defaults to True.

    Returns:
        Benchmark: The measurements.

    Raises:
        UserError: If a name is unknown, a runtime, a compiler or the device
            is missing, or a number is not positive.
    """
    threads = torch.get_num_threads() if threads is None else threads
    size = (size, ) if isinstance(size, int) else tuple(size)
    if min(threads, repeats, *size, *batches) < 1 or warmup < 0:
        raise UserError('threads, batch sizes, image size and repeats must '
                        'be positive')
    if len(size) > 2:
        raise UserError(f'size must be one number or two, but got {size}')
    size = (size[0], size[-1])
    if dtype not in DTYPES:
        raise UserError(f'dtype must be fp32 or bf16, but got {dtype}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError('there is no CUDA device here')
    wanted = [] if train else [
        parse_form(form, dtype, device) for form in forms
    ]
    subjects = [resolve(name) for name in models]
    check_whole(subjects, wanted, batches, train)
    pairs = [(subject, batch) for subject in subjects for batch in batches]
    groups = [pairs] if together else [[pair] for pair in pairs]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        turns = len(groups) * (repeats + warmup)
        bar = ProgressBar(turns, file=sys.stderr) if progress else None
        rates: dict[str, list[float]] = {}
        measurements = []
        for group in groups:
            with tempfile.TemporaryDirectory() as folder:
                cases = []
                for subject, batch in group:
                    cases += training_cases(
                        subject, batch, dtype, size, device
                    ) if train else inference_cases(
                        subject, batch, wanted, Path(folder), size, device,
                        threads)
                products = _time_in_turns(cases, repeats, warmup, device,
                                          train, bar)
            found = [m for m, _ in cases]
            del cases  # one group at a time in memory
            _relate(found, products, 'train' if train else 'plain')
            measurements += found
            for precision, rate in products.items():
                rates.setdefault(precision, []).append(rate)
    finally:
        torch.set_num_threads(before)
        if progress:
            print(file=sys.stderr)
    return Benchmark(
        dict(
            models=list(models),
            forms=list(forms),
            batches=list(batches),
            repeats=repeats,
            warmup=warmup,
            train=train,
            together=together,
            size=list(size),
            device=device,
            dtype=dtype,
            threads=threads), machine(device),
        {name: statistics.median(found)
         for name, found in rates.items()}, measurements)


def _time_in_turns(group: Sequence[Case], repeats: int, warmup: int,
                   device: str, train: bool,
                   bar: ProgressBar | None) -> dict[str, float]:
    """Time the calls and append to ``seconds`` of each measurement.

    Returns:
        dict[str, float]: FLOP/s of the matrix product in each precision.
    """
    calls = [(m.seconds, call) for m, call in group]
    products: dict[str, list[float]] = {}
    precisions = {m.precision for m, _ in group} & set(DTYPES)
    for precision in sorted(precisions):
        a, b = torch.rand(2, SIDE, SIDE, device=device).to(DTYPES[precision])
        products[precision] = []
        calls.append((products[precision], lambda a=a, b=b: torch.mm(a, b)))

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    for turn in range(warmup + repeats):
        for seconds, call in calls:
            if not train:
                # Not timed: the caches hold data of the form before, and
                # threads of another runtime may still be busy-waiting.
                call()
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn >= warmup:
                seconds.append(time.perf_counter() - start)
        if bar:
            bar.update()
    return {
        precision: 2 * SIDE**3 / statistics.median(taken)
        for precision, taken in products.items()
    }


def _relate(group: Sequence[Measurement], rates: dict[str, float],
            base: str) -> None:
    """Set ``ratio``, to a form of the same network, and ``share``."""
    medians = {(m.model, m.batch): m.median for m in reversed(group)
               if m.form == base}
    for m in group:
        median = medians.get((m.model, m.batch))
        m.ratio = m.median / median if median else None
        if m.precision in rates:
            m.share = m.gflops * 1e9 / rates[m.precision]


def machine(device: str = 'cpu') -> dict[str, object]:
    """The processor, PyTorch's default threads, the system and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    versions = dict(mmvanilla=__version__, torch=torch.__version__)
    for package in ('onnxruntime', 'openvino'):
        try:
            versions[package] = __import__(package).__version__.split('-')[0]
        except ImportError:
            pass
    return dict(
        name=name,
        default_threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions)
