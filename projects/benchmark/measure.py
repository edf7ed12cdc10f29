# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Time all forms of a network interleaved, in one process.

So other load on the machine affects all of them alike. The product of two
matrices is timed with them: its rate is the peak that a network could reach.
"""
import json
import platform
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from forms import DTYPES, WHOLE, inference_cases, parse_form, training_cases
from mmengine.logging import MMLogger
from subjects import resolve
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils import common

from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import check_output, write_beside
from mmvanilla.utils.terminal import markdown_table, track

LABELS = dict(
    train='train form', plain='plain PyTorch', openvino='OpenVINO',
    channels_last='plain, channels_last', onnxruntime='ONNX Runtime',
    eager='optimized, eager', inductor='optimized, inductor',
    aoti='AOT Inductor', with_cp='train form, with_cp',
    finetune='fine-tune form')
MEMORY = ('parameters', 'gradients', 'optimizer', 'activations', 'peak')
SIDE = 2048  # of the square matrices whose product gives the machine's rate


def main(out: str | None, force: bool, **options) -> None:
    """Measure, print the table, write the files."""
    # A suffix is appended, since a name may have a dot: VanillaNet-13-x1.5.
    paths = [Path(f'{out}.{suffix}') for suffix in ('json', 'md', 'png')]
    for path in paths if out else ():
        check_output(path, force=force)
    result = benchmark(**options)
    print(table(result))
    if not out:
        return
    drawn = [m for m in result['measurements'] if m.get('accuracy')
             and m['batch'] == options['batches'][0]]
    with write_beside(*paths[:2 + bool(drawn)]) as written:
        written[0].write_text(json.dumps(result, indent=1) + '\n')
        written[1].write_text(table(result) + '\n')
        if drawn:
            plot(drawn, result, written[2])
    print(f'wrote {", ".join(map(str, paths[:len(written)]))}')


def benchmark(models: Sequence[str], forms: Sequence[str] = ('plain', 'eager'),
              batches: Sequence[int] = (1, ), threads: int | None = None,
              dtype: str = 'fp32', device: str = 'cpu',
              size: Sequence[int] = (224, ), repeats: int = 20,
              warmup: int = 2, train: bool = False,
              together: bool = False) -> dict[str, object]:
    """Time forms of networks; the arguments are benchmark.py's options."""
    MMLogger.get_current_instance().setLevel('WARNING')
    threads = threads or torch.get_num_threads()
    if min(threads, repeats, *size, *batches) < 1 or warmup < 0:
        raise UserError('threads, batch sizes, image size and repeats must '
                        'be positive')
    if len(size) > 2:
        raise UserError(f'size must be one number or two, but got {size}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError('there is no CUDA device here')
    settings = dict(locals(), size=[size[0], size[-1]])
    wanted = [parse_form(form, dtype, device)
              for form in (() if train else forms)]
    subjects = [resolve(name) for name in models]
    for subject in subjects:
        if subject.whole and (train or set(batches) != {1} or any(
                form not in WHOLE or precision != 'fp32'
                for form, precision in wanted)):
            raise UserError(
                f'a whole model ({subject.name}) is timed for inference of '
                f'one image, in fp32, in the forms {", ".join(WHOLE)}')
    pairs = [(subject, batch) for subject in subjects for batch in batches]
    groups = [pairs] if together else [[pair] for pair in pairs]
    rates, measurements = {}, []
    for group in track(groups, 'timing', len(groups)):
        # Networks of a class share a limit, above which PyTorch compiles no
        # more. Nothing is reset before the group is timed: what is compiled
        # again at a later call is not frozen.
        torch.compiler.reset()
        limit = torch._dynamo.config.recompile_limit * len(group)
        with (tempfile.TemporaryDirectory() as folder,
              common.set_torch_threads(threads),
              torch.set_grad_enabled(train),
              torch._dynamo.config.patch(recompile_limit=limit)):
            cases = []
            for subject, batch in group:
                torch.manual_seed(0)
                x = torch.randn(batch, 3, size[0], size[-1], device=device)
                cases += training_cases(
                    subject, x, dtype) if train else inference_cases(
                        subject, x, wanted, Path(folder), threads)
            products = []
            for precision in sorted({m['precision'] for m, _ in cases}
                                    & set(DTYPES)):
                a = torch.rand(SIDE, SIDE, device=device).to(DTYPES[precision])
                products.append(
                    (dict(macs=SIDE**3, batch=1, precision=precision),
                     lambda a=a: torch.mm(a, a)))
            time(cases + products, repeats, warmup, threads)
        for m, _ in products:
            rates.setdefault(m['precision'], []).append(1e9 * m['gflops'])
        found = [m for m, _ in cases]
        del cases  # one group at a time in memory
        form = 'train' if train else 'plain'
        for m in found:
            base = [n['median'] for n in found if n['form'] == form and
                    (n['model'], n['batch']) == (m['model'], m['batch'])]
            m['ratio'] = m['median'] / base[0] if base else None
            peak = rates.get(m['precision'])
            m['share'] = 1e9 * m['gflops'] / peak[-1] if peak else None
        measurements += found
    rates = {name: sorted(r)[len(r) // 2] for name, r in rates.items()}
    return dict(settings=settings, machine=machine(device), rates=rates,
                measurements=measurements)


def time(cases: list, repeats: int, warmup: int, threads: int) -> None:
    """Call all cases in each round; add the times and their statistics."""
    timers = [Timer('call()', globals=dict(call=call), num_threads=threads)
              for _, call in cases]
    for _ in range(warmup + repeats):
        for (m, _), timer in zip(cases, timers):
            # Two calls before it are not timed: the caches hold data of
            # another form, whose threads may still be busy-waiting.
            m.setdefault('seconds', []).extend(timer.timeit(1).times)
    for m, _ in cases:
        del m['seconds'][:warmup]
        statistics = common.Measurement(
            1, m['seconds'], common.TaskSpec('', ''))
        m['median'] = statistics.median
        m['spread'] = statistics.iqr / 2 / statistics.median
        m['gflops'] = 2e-9 * m['macs'] * m['batch'] / statistics.median


def machine(device: str) -> dict[str, object]:
    """The processor, the system and the versions of packages."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif cpuinfo.exists() and 'model name' in cpuinfo.read_text():
        name = cpuinfo.read_text().split('model name')[1].split('\n')[0][3:]
    packages = ('mmvanilla', 'torch', 'onnxruntime', 'openvino')
    versions = {package: __import__(package).__version__.split('-')[0]
                for package in packages if find_spec(package)}
    return dict(name=name, capability=torch.backends.cpu.get_cpu_capability(),
                system=platform.platform(), python=platform.python_version(),
                versions=versions)


def table(result: dict[str, object]) -> str:
    """The measurements in Markdown, and a line on the machine."""
    training = result['settings']['train']
    header = ['network', 'form', 'precision', 'batch', 'ms', 'spread',
              'ratio', 'share', 'GFLOP/s', 'params (M)', 'MACs (G)']
    if training:
        header[7:] = [f'{name} (MB)' for name in MEMORY]
    rows = []
    for m in result['measurements']:
        rows.append([
            m['model'], LABELS[m['form']], m['precision'], str(m['batch']),
            f'{1e3 * m["median"]:.1f}', f'{100 * m["spread"]:.0f} %',
            *('-' if m[key] is None else f'{m[key]:.2f}'
              for key in ('ratio', 'share')), f'{m["gflops"]:.0f}',
            f'{m["parameters"] / 1e6:.1f}', f'{m["macs"] / 1e9:.2f}'])
        if training:
            rows[-1][7:] = [f'{m["memory"][k] / 1e6:.0f}' for k in MEMORY]
    rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}'
                      for name, rate in result['rates'].items())
    versions = result['machine']['versions'].items()
    return (f'{markdown_table(header, rows)}\n\n{result["machine"]["name"]}, '
            f'{result["settings"]["threads"]} threads; product of two {SIDE} '
            f'x {SIDE} matrices: {rates}. ' +
            ', '.join(f'{name} {number}' for name, number in versions) + '.')


def plot(measurements: list[dict], result: dict, path: Path) -> None:
    """Draw latency, as measured, against accuracy, as published."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.add_subplot()
    lines, fastest, colors = {}, {}, {}
    for m in measurements:
        label = f'{LABELS[m["form"]]}, {m["precision"]}'
        lines.setdefault((m['model'].split('-')[0], label), []).append(m)
        fastest[m['model']] = min(
            m, fastest.get(m['model'], m), key=lambda m: m['median'])
    for (family, label), points in lines.items():
        points.sort(key=lambda m: m['accuracy'])
        axes.plot([1e3 * m['median'] for m in points],
                  [m['accuracy'] for m in points],
                  'o-' if family == 'VanillaNet' else 's--',
                  # One for each form, in all networks.
                  color=colors.setdefault(label, f'C{len(colors)}'),
                  label=f'{family}: {label}')
    for name, m in fastest.items():
        axes.annotate(name, (1e3 * m['median'], m['accuracy']),
                      textcoords='offset points', xytext=(-4, 5), fontsize=7,
                      ha='right' if name.startswith('Vanilla') else 'left')
    axes.set_xlabel(
        f'latency, ms: batch {m["batch"]}, {result["machine"]["name"]}, '
        f'{result["settings"]["threads"]} threads (measured)')
    axes.set_ylabel("ImageNet top-1, % (VanillaNet: the paper's; others: "
                    "mmpretrain's)", fontsize=8)
    axes.set(xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
