# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""How fast each form of a network is here, against what the machine can do.

Every form of a network computes the same function of the same weights, and
is timed in turns with the others in one process: what disturbs one disturbs
all. Beside them runs the product of two matrices of 2048 x 2048, whose rate
is what a network could reach at best: ``share`` is the time that the
network's multiplications would take at that rate over the time it took.
"""
import copy
import difflib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode

from ..export.backends import check_backend, open_exported
from ..export.backends import write as write_exported
from ..export.network import Network
from ..layers import switch_to_deploy
from ..models import VanillaNet, VanillaNetHead
from ..utils.errors import UserError
from ..utils.files import replace_atomically
from ..utils.tables import markdown_table
from ..version import __version__

# form: what it is, in the words of the table
FORMS = dict(
    train='train form',
    plain='plain PyTorch',
    ours='mmvanilla',
    compiled='torch.compile, frozen',
    onnxruntime='ONNX Runtime',
    openvino='OpenVINO')
TRAIN_FORMS = dict(
    plain='plain PyTorch',
    ours='mmvanilla',
    checkpointed='mmvanilla, with_cp')
PRECISIONS = ('fp32', 'bf16', 'int8')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)
EXPORTED = dict(onnxruntime='onnx', openvino='openvino')
OURS = {f'VanillaNet-{arch}': arch for arch in VanillaNet.arch_settings}
PEERS = {
    'ResNet-18': 'resnet18_8xb32_in1k',
    'ResNet-34': 'resnet34_8xb32_in1k',
    'ResNet-50': 'resnet50_8xb32_in1k',
    'ResNet-101': 'resnet101_8xb32_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'Swin-S': 'swin-small_16xb64_in1k',
}
# ImageNet top-1 of arXiv 2305.12972, per cent.
PAPER_ACCURACY = {
    '5': 72.49, '6': 76.36, '7': 77.98, '8': 79.13, '9': 79.87, '10': 80.57,
    '11': 81.08, '12': 81.55, '13': 82.05, '13-x1.5': 82.53,
    '13-x1.5-ada': 83.11
}  # yapf: disable
SIDE = 2048  # of the matrices whose product is the measure


@dataclass
class Measurement:
    """One form of one network at one batch size.

    Attributes:
        seconds (list[float]): Of each repeat.
        macs (int): Multiply-accumulates for one image, of this form.
        ratio (float, optional): Median over that of the first plain form.
        share (float, optional): Of the machine's rate in this precision.
        peak_bytes (int, optional): Most memory held during a training step,
            parameters, buffers and gradients included.
    """

    model: str
    form: str
    precision: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0
    ratio: float | None = None
    share: float | None = None
    peak_bytes: int | None = None
    accuracy: float | None = None

    @property
    def median(self) -> float:
        """float: Seconds for a batch."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """float: Half of the range of the middle half, over the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median

    @property
    def gflops(self) -> float:
        """float: 1e9 multiplications and additions a second."""
        return 2 * self.macs * self.batch / self.median / 1e9

    def as_dict(self) -> dict:
        """All of it, for a JSON file."""
        return dict(
            asdict(self),
            median=self.median,
            spread=self.spread,
            gflops=self.gflops)


@dataclass
class Benchmark:
    """All that was measured, and where."""

    settings: dict[str, object]
    machine: dict[str, object]
    rates: dict[str, float]
    measurements: list[Measurement]

    def table(self) -> str:
        """The findings in Markdown, with the machine below."""
        training = self.settings['train']
        names = TRAIN_FORMS if training else FORMS
        header = ['network', 'form', 'precision', 'batch', 'ms', 'spread',
                  'ratio', 'share', 'GFLOP/s', 'params (M)', 'MACs (G)']
        if training:
            header[7:9] = ['peak memory (MB)', 'memory ratio']
        rows = []
        for m in self.measurements:
            row = [
                m.model, names[m.form], m.precision,
                str(m.batch), f'{1e3 * m.median:.1f}',
                f'{100 * m.spread:.0f} %', _number(m.ratio),
                _number(m.share), f'{m.gflops:.0f}',
                f'{m.parameters / 1e6:.1f}', f'{m.macs / 1e9:.2f}'
            ]
            if training:
                row[7:9] = [
                    f'{m.peak_bytes / 1e6:.0f}',
                    _number(m.peak_bytes / self._plain_bytes(m))
                ]
            rows.append(tuple(row))
        rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}'
                          for name, rate in self.rates.items())
        machine = self.machine
        return '\n'.join([
            markdown_table(header, rows), '',
            f'{machine["name"]}, {self.settings["threads"]} threads; product '
            f'of two {SIDE} x {SIDE} matrices: {rates}. ' +
            ', '.join(f'{k} {v}' for k, v in machine['versions'].items()) + '.'
        ])

    def _plain_bytes(self, m: Measurement) -> float:
        for other in self.measurements:
            if (other.model, other.batch, other.form) == (m.model, m.batch,
                                                          'plain'):
                return other.peak_bytes
        return float('nan')

    def save(self, prefix: str) -> list[str]:
        """Write PREFIX.json, PREFIX.md and, not for training, PREFIX.png."""
        prefix = Path(prefix)
        written = []
        with replace_atomically(_with(prefix, '.json')) as path:
            path.write_text(json.dumps(self.as_dict(), indent=1) + '\n')
        with replace_atomically(_with(prefix, '.md')) as path:
            path.write_text(self.table() + '\n')
        written += [_with(prefix, '.json'), _with(prefix, '.md')]
        if any(m.accuracy for m in self.measurements
               ) and not self.settings['train']:
            with replace_atomically(_with(prefix, '.png')) as path:
                plot(self, path)
            written.append(_with(prefix, '.png'))
        return [str(path) for path in written]

    def as_dict(self) -> dict:
        """All of it, for a JSON file."""
        return dict(
            settings=self.settings,
            machine=self.machine,
            rates=self.rates,
            measurements=[m.as_dict() for m in self.measurements])


def _with(prefix: Path, suffix: str) -> Path:
    # VanillaNet-13-x1.5: what follows a dot may be part of the name.
    return prefix.with_name(prefix.name + suffix)


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


# ----------------------------------------------- the plain form, from scratch


class PlainStage(nn.Module):
    """What a reader of the paper would write for one layer."""

    def __init__(self, cin, cout, kernel, stride, padding, pool, n, mid=None):
        super().__init__()
        train = mid is not None
        self.conv1 = nn.Conv2d(cin, mid or cout, kernel, stride, padding)
        if train:
            self.norm1 = nn.BatchNorm2d(mid, eps=1e-6)
            self.conv2 = nn.Conv2d(mid, cout, 1)
            self.norm2 = nn.BatchNorm2d(cout, eps=1e-6)
            self.norm3 = nn.BatchNorm2d(cout, eps=1e-6)
        self.train_form = train
        self.pool = pool
        self.series = nn.Conv2d(
            cout, cout, 2 * n + 1, padding=n, groups=cout, bias=not train)

    def forward(self, x):
        """(N, cin, H, W) -> (N, cout, H', W')."""
        x = self.conv1(x)
        if self.train_form:
            x = F.leaky_relu(self.norm1(x), 1.0)
            x = self.norm2(self.conv2(x))
        x = self.series(F.relu(self.pool(x)))
        return self.norm3(x) if self.train_form else x


class PlainVanillaNet(nn.Module):
    """VanillaNet the plain way, apart from all that is in this package."""

    def __init__(self, dims, strides, ada_pool=None, n=3, classes=1000,
                 train_form=False):
        super().__init__()
        stem = (4, 4, 0) if ada_pool is None else (4, 3, 1)
        mid = dims[0] if train_form else None
        stages = [PlainStage(3, dims[0], *stem, nn.Identity(), n, mid)]
        for i, stride in enumerate(strides):
            pool = nn.Identity()
            if stride == 2:
                pool = (nn.MaxPool2d(2) if ada_pool is None else
                        nn.AdaptiveMaxPool2d(ada_pool[i]))
            mid = dims[i] if train_form else None
            stages.append(
                PlainStage(dims[i], dims[i + 1], 1, 1, 0, pool, n, mid))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Conv2d(dims[-1], classes, 1))
        if train_form:
            self.head = nn.Sequential(
                nn.Conv2d(dims[-1], classes, 1),
                nn.BatchNorm2d(classes, eps=1e-6), nn.LeakyReLU(1.0),
                nn.Conv2d(classes, classes, 1))

    def forward(self, x):
        """(N, 3, H, W) -> (N, classes)."""
        return self.head(self.stages(x).mean((2, 3), keepdim=True)).flatten(1)


# ------------------------------------------------------------- the networks


def vanillanet(arch: str, deploy: bool = True, **kwargs) -> Network:
    """This package's network with a head of 1000 classes, random weights."""
    backbone = VanillaNet(arch, deploy=deploy, **kwargs)
    width = VanillaNet.arch_settings[arch]['dims'][-1]
    return Network(backbone, VanillaNetHead(1000, width, deploy=deploy))


def plain_like(network: Network, arch: str,
               train_form: bool = False) -> PlainVanillaNet:
    """The plain form with the very parameters of ours."""
    plain = PlainVanillaNet(
        **VanillaNet.arch_settings[arch], train_form=train_form)
    if not train_form:
        _share_parameters(plain, network)
    return plain


def _share_parameters(plain: nn.Module, network: nn.Module) -> None:
    """Both forms list weight and bias in the order of the data's way."""
    theirs = [p for m in plain.modules() for p in m._parameters.values()]
    ours = [
        p for m in network.modules() for p in m._parameters.values()
        if p is not None
    ]
    for a, b in zip(theirs, ours, strict=True):
        assert a.shape == b.shape
        a.data = b.data


def resolve(name: str) -> tuple[str, str | None]:
    """A model's display name, and its arch where it is a VanillaNet.

    Raises:
        UserError: If there is no model of that name.
    """
    if name in VanillaNet.arch_settings:
        return f'VanillaNet-{name}', name
    if name in OURS:
        return name, OURS[name]
    from mmpretrain.apis import list_models
    known = list_models()
    if PEERS.get(name, name) in known:
        return name, None
    near = difflib.get_close_matches(name, [*OURS, *PEERS, *known], 3)
    raise UserError(f'no model is called {name}; did you mean '
                    f'{", ".join(near or list(OURS)[:3])}?')


def _peer(name: str) -> tuple[nn.Module, float | None]:
    """A model of mmpretrain's, and the accuracy of its model index."""
    from mmpretrain.apis import ModelHub, get_model
    index_name = PEERS.get(name, name)
    model = get_model(index_name, pretrained=False).eval()
    results = ModelHub.get(index_name).results or []
    accuracy = results[0].metrics.get('Top 1 Accuracy') if results else None

    class Logits(nn.Module):

        def __init__(self):
            super().__init__()
            self.model = model
            self.head = model.head  # as Network: what it gives are logits

        def forward(self, x):
            return [self.model(x.to(next(self.parameters()).dtype))]

    return Logits().eval(), accuracy


# ------------------------------------------------------------- measuring


def parse_form(text: str) -> tuple[str, str]:
    """'openvino' or 'openvino:int8' -> the form and its precision or ''.

    Raises:
        UserError: If there is no such form or precision.
    """
    form, _, precision = text.partition(':')
    if form not in FORMS or precision not in ('', *PRECISIONS):
        raise UserError(
            f'a form is one of {", ".join(FORMS)}, with :fp32, :bf16 or :int8 '
            f'behind it where it is not --dtype, but got {text}')
    if precision == 'int8' and form not in EXPORTED:
        raise UserError(f'int8 is for onnxruntime and openvino, not for '
                        f'{form}')
    if precision == 'bf16' and form == 'onnxruntime':
        raise UserError("ONNX Runtime's CPU has no bf16 convolution")
    return form, precision


def benchmark(models: Sequence[str],
              forms: Sequence[str] = ('plain', 'ours'),
              batches: Sequence[int] = (1, ),
              threads: int | None = None,
              dtype: str = 'fp32',
              device: str = 'cpu',
              size: int = 224,
              repeats: int = 20,
              warmup: int = 2,
              train: bool = False,
              progress: bool = True) -> Benchmark:
    """Time forms of networks, in turns.

    Args:
        models (Sequence[str]): '6', 'VanillaNet-6', 'ResNet-50' or any name
            that mmpretrain's ``get_model`` knows.
        forms (Sequence[str]): Of :data:`FORMS`, each with ':bf16' or ':int8'
            behind it where its precision is not ``dtype``. A network of
            mmpretrain's has no 'train' and no 'ours'. Not read for training.
        batches (Sequence[int]): Batch sizes. Defaults to (1, ).
        threads (int, optional): Defaults to None, as many as PyTorch takes.
        dtype (str): 'fp32' or 'bf16' (for training, autocast).
            Defaults to 'fp32'.
        device (str): 'cpu' or 'cuda'. Defaults to 'cpu'.
        size (int): Side of the images, in pixels. Defaults to 224.
        repeats (int): Timed calls of each. Defaults to 20.
        warmup (int): Turns before the first that is timed. Defaults to 2.
        train (bool): Whether to measure a training step, forward and
            backward, and its peak memory instead. Defaults to False.
        progress (bool): Whether to show a bar. Defaults to True.

    Returns:
        Benchmark: What was measured.

    Raises:
        UserError: If a name is unknown, a runtime missing or a number not
            positive.
    """
    threads = threads or torch.get_num_threads()
    if min(threads, size, repeats, *batches) < 1 or warmup < 0:
        raise UserError('threads, batch sizes, image size and repeats must '
                        'be positive')
    if dtype not in DTYPES:
        raise UserError(f'dtype must be fp32 or bf16, but got {dtype}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError('there is no CUDA device here')
    wanted = [parse_form(form) for form in forms]
    for form, precision in wanted:
        if form in EXPORTED and not train:
            check_backend(EXPORTED[form], precision or dtype)
            if device != 'cpu':
                raise UserError(f'{form} is measured on the CPU only')
    resolved = [resolve(name) for name in models]
    if train and not all(arch for _, arch in resolved):
        raise UserError('a training step is measured of VanillaNet only')

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cases = _train_cases if train else _inference_cases
        options = dict(size=size, device=device, dtype=dtype, threads=threads)
        count = len(batches) * len(resolved)
        turns = count * (repeats + warmup)
        bar = ProgressBar(turns, file=sys.stderr) if progress else None
        rates: dict[str, list[float]] = {}
        measurements = []
        for name, arch in resolved:
            for batch in batches:
                with tempfile.TemporaryDirectory() as folder:
                    group = list(
                        cases(name, arch, batch, wanted, Path(folder),
                              **options))
                    products = _time_in_turns(group, repeats, warmup, device,
                                              train, bar)
                    measurements += [m for m, _ in group]
                    _relate(measurements[-len(group):], products)
                    for precision, rate in products.items():
                        rates.setdefault(precision, []).append(rate)
                    del group
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
            **options), machine(device),
        {name: statistics.median(found)
         for name, found in rates.items()}, measurements)


Case = tuple[Measurement, Callable[[], object]]


@torch.no_grad()
def _inference_cases(name: str, arch: str | None, batch: int, wanted,
                     folder: Path, size: int, device: str, dtype: str,
                     threads: int) -> Iterator[Case]:
    # What was compiled before would count as recompilations of this.
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.rand(batch, 3, size, size)
    accuracy = PAPER_ACCURACY.get(arch)
    trained = reference = None
    if arch is None:
        network, accuracy = _peer(name)
    else:
        trained = vanillanet(arch, deploy=False).eval()
        network = copy.deepcopy(trained)
        switch_to_deploy(network)
        plain = plain_like(network, arch).eval().to(device)
    network, x = network.to(device), x.to(device)
    parameters = sum(p.numel() for p in network.parameters())
    macs = _macs(network, x[:1])

    for form, precision in wanted:
        precision = precision or dtype
        if arch is None and form in ('train', 'ours'):
            continue
        m = Measurement(name, form, precision, batch, [], parameters, macs,
                        accuracy=accuracy)
        if form in EXPORTED:
            path = folder / (f'{form}_{precision}' +
                             dict(onnxruntime='.onnx', openvino='.xml')[form])
            write_exported(
                network, x, path, EXPORTED[form], precision,
                calibration=list(x.split(1)) *
                (8 // batch or 1) if precision == 'int8' else None)
            run = open_exported(path, EXPORTED[form], precision, threads)
        else:
            run = dict(
                train=trained, plain=plain if arch else network,
                ours=network, compiled=network)[form].to(device)
            if form == 'train':
                m.parameters = sum(p.numel() for p in run.parameters())
                m.macs = _macs(run, x[:1])
            if precision != 'fp32':
                run = copy.deepcopy(run).to(DTYPES[precision])
        data = x if precision == 'int8' or form in EXPORTED else x.to(
            DTYPES[precision])
        if form == 'compiled':
            run = _compile_frozen(run, data)
        output = _first(run(data)).float()
        reference = output if reference is None else reference
        _check_same(name, form, precision, reference, output)
        yield m, _call(run, data)


def _compile_frozen(network: nn.Module, data: Tensor) -> Callable:
    """Compile with the weights as constants, packed once and for all."""
    compiled = torch.compile(network)
    # As an option of torch.compile it would come too late for the tracing,
    # which is where weights become constants.
    with inductor.patch(freezing=True):
        compiled(data)
    return compiled


def _first(outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _call(function, *args) -> Callable[[], object]:
    return torch.no_grad()(lambda: function(*args))


def _check_same(name, form, precision, reference, output) -> None:
    """A form that computes something else is no form of the network."""
    error = (output - reference).norm() / reference.norm()
    if not error < dict(fp32=1e-3, bf16=0.1, int8=0.5)[precision]:
        raise RuntimeError(f'{form} of {name} in {precision} differs by '
                           f'{error:.3g}')


def _macs(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def _train_cases(name: str, arch: str, batch: int, wanted, folder: Path,
                 size: int, device: str, dtype: str,
                 threads: int) -> Iterator[Case]:
    torch.manual_seed(0)
    x = torch.rand(batch, 3, size, size, device=device)
    target = torch.rand(batch, 1000, device=device)
    ours = vanillanet(arch, deploy=False).to(device)
    networks = dict(
        plain=plain_like(ours, arch, train_form=True).to(device),
        ours=ours,
        checkpointed=vanillanet(arch, deploy=False, with_cp=True).to(device))
    macs = _macs(ours.eval(), x[:1])
    for form, network in networks.items():
        network.train()
        _share_parameters_by_shape(network, networks['plain'])

        def step(network=network):
            network.zero_grad()
            with torch.autocast(
                    device, torch.bfloat16) if dtype == 'bf16' else (
                        nullcontext()):
                output = _first(network(x))
            F.binary_cross_entropy_with_logits(output.float(),
                                               target).backward()

        m = Measurement(name, form, dtype, batch, [],
                        sum(p.numel() for p in network.parameters()),
                        3 * macs)
        step()
        m.peak_bytes = _peak_bytes(network, step, device)
        network.zero_grad()
        yield m, step


def _share_parameters_by_shape(network, source) -> None:
    """Parameters are shared, so that three networks take the room of one."""
    free = list(source.parameters())
    for p in network.parameters():
        match = next(q for q in free if q.shape == p.shape)
        free = [q for q in free if q is not match]
        p.data = match.data


def _peak_bytes(network: nn.Module, step: Callable, device: str) -> int:
    """Most bytes of tensors at any moment of a step, the network's own too."""
    own = sum(t.numel() * t.element_size()
              for t in [*network.parameters(), *network.buffers()])
    network.zero_grad()
    if device == 'cuda':
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return own + torch.cuda.max_memory_allocated() - base
    from torch.profiler import ProfilerActivity, profile
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = sorted(
        (e.start_ns(), e.nbytes())
        for e in prof.profiler.kineto_results.events()
        if e.name() == '[memory]')
    held = peak = 0
    for _, change in events:
        held += change
        peak = max(peak, held)
    return own + peak


def _time_in_turns(group: list[Case], repeats: int, warmup: int, device: str,
                   train: bool,
                   bar: ProgressBar | None) -> dict[str, float]:
    """Fill in the seconds; return the machine's rate in each precision."""
    rivals = [(m.seconds, call) for m, call in group]
    products: dict[str, list[float]] = {}
    precisions = {m.precision for m, _ in group} & set(DTYPES)
    for precision in sorted(precisions):
        a, b = torch.rand(2, SIDE, SIDE, device=device).to(DTYPES[precision])
        products[precision] = []
        rivals.append((products[precision], _call(torch.mm, a, b)))

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    for turn in range(warmup + repeats):
        for seconds, call in rivals:
            if not train:
                # The caches hold what the one before it left; and threads of
                # another runtime may still be spinning.
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


def _relate(group: list[Measurement], rates: dict[str, float]) -> None:
    """Set what compares the forms of one network at one batch size."""
    plain = next((m.median for m in group if m.form == 'plain'), None)
    for m in group:
        m.ratio = m.median / plain if plain else None
        if m.precision in rates:
            m.share = m.gflops * 1e9 / rates[m.precision]


def machine(device: str = 'cpu') -> dict[str, object]:
    """Name of the processor, cores, system, and versions of all that ran."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    cores = torch.get_num_threads()
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
        cores=cores,
        capability=torch.backends.cpu.get_cpu_capability(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions)


# ---------------------------------------------------------------- drawing


def plot(result: Benchmark, path: Path) -> None:
    """Draw latency, as measured, against accuracy, as published."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    batch = result.settings['batches'][0]
    figure = Figure(figsize=(8, 5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines: dict[tuple[str, str], list[Measurement]] = {}
    for m in result.measurements:
        if m.batch != batch or not m.accuracy:
            continue
        family = 'VanillaNet' if m.model in OURS else m.model.split('-')[0]
        lines.setdefault((family, m.form, m.precision), []).append(m)
    # A colour for each form, whatever the network.
    colors: dict[tuple[str, str], str] = {}
    fastest: dict[str, Measurement] = {}
    for (family, form, precision), points in lines.items():
        points.sort(key=lambda m: m.accuracy)
        color = colors.setdefault((form, precision), f'C{len(colors)}')
        axes.plot([1e3 * m.median for m in points],
                  [m.accuracy for m in points],
                  'o-' if family == 'VanillaNet' else 's--',
                  color=color,
                  label=f'{family}: {FORMS[form]}, {precision}')
        for m in points:
            if m.median < fastest.setdefault(m.model, m).median:
                fastest[m.model] = m
    for m in fastest.values():
        axes.annotate(
            m.model, (1e3 * m.median, m.accuracy),
            textcoords='offset points',
            xytext=(-4, 5),
            ha='right' if m.model in OURS else 'left',
            fontsize=7)
    axes.set_xlabel(f'latency, ms: batch {batch}, {result.machine["name"]}, '
                    f'{result.settings["threads"]} threads (measured)')
    axes.set_ylabel("ImageNet top-1, % (VanillaNet: the paper's; others: "
                    "mmpretrain's)", fontsize=8)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata=dict(Software='mmvanilla'))
