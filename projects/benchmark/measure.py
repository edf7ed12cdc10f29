# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Time all forms of a network interleaved, in one process.

So other load on the machine affects all of them alike. The product of two
matrices is timed with them: its rate is the peak that a network could reach.
"""
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, strftime

import gpu
import torch
from forms import (
    DTYPES,
    TRAINED,
    WHOLE,
    inference_cases,
    parse_form,
    parts,
    training_cases,
)
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
    finetune='fine-tune form', triton='optimized, Triton')
MEMORY = ('parameters', 'gradients', 'optimizer', 'activations', 'peak')
# Of the table: its name, the measurement's, its format, its scale.
COLUMNS = [('ms', 'median', '.1f', 1e3), ('spread', 'spread', '.0%', 1),
           ('ratio', 'ratio', '.2f', 1), ('share', 'share', '.2f', 1),
           ('GFLOP/s', 'gflops', '.0f', 1),
           ('params (M)', 'parameters', '.1f', 1e-6),
           ('MACs (G)', 'macs', '.2f', 1e-9)]
SIDE = 2048  # of the square matrices whose product gives the machine's rate


def main(out: str | None, force: bool, **options) -> None:
    """Measure, print the table, write the files."""
    # A suffix is appended, since a name may have a dot: VanillaNet-13-x1.5.
    paths = [Path(f'{out}.{suffix}') for suffix in ('json', 'md', 'png')]
    for path in paths if out else ():
        check_output(path, force=force)

    def save(result, drawn=()):
        with write_beside(*paths[:2 + bool(drawn)]) as written:
            written[0].write_text(json.dumps(result, indent=1) + '\n')
            written[1].write_text(table(result) + '\n')
            if drawn:
                plot(drawn, result, written[2])
        return f'wrote {", ".join(map(str, paths[:len(written)]))}'

    # After each group, for a run that is killed.
    result = benchmark(**options, save=save if out else lambda _: None)
    print(table(result))
    if out:
        print(save(result, [
            m for m in result['measurements'] if m.get('accuracy')
            and m['batch'] == options['batches'][0] and 'median' in m]))


def benchmark(models: Sequence[str], forms: Sequence[str] | None = None,
              batches: Sequence[int] = (1, ), threads: int | None = None,
              dtype: str = 'fp32', device: str = 'cpu',
              size: Sequence[int] = (224, ), repeats: int = 20,
              warmup: int = 2, train: bool = False, together: bool = False,
              budget: float | None = None,
              save: Callable = lambda _: None) -> dict[str, object]:
    """Time forms of networks; the arguments are benchmark.py's options.

    ``save`` is called with the result so far, after each group of networks.
    """
    forms = forms or (TRAINED if train else ('plain', 'eager')
                      if device == 'cpu' else ('plain', 'graph'))
    threads = threads or torch.get_num_threads()
    settings = dict(locals(), size=[size[0], size[-1]])
    del settings['save']
    deadline, on_cuda = monotonic() + (budget or 1e9), device == 'cuda'
    MMLogger.get_current_instance().setLevel('WARNING')
    if min(threads, repeats, *size, *batches) < 1 or warmup < 0:
        raise UserError('threads, batch sizes, image size and repeats must '
                        'be positive')
    if len(size) > 2:
        raise UserError(f'size must be one number or two, but got {size}')
    if on_cuda and not gpu.is_available():
        raise UserError('there is no CUDA device here')
    wanted = [parse_form(form, dtype, device, train) for form in forms]
    subjects = [resolve(name) for name in models]
    for subject in subjects:
        if subject.whole and (train or on_cuda or set(batches) != {1} or any(
                form not in WHOLE or precision != 'fp32'
                for form, precision in wanted)):
            raise UserError(
                f'a whole model ({subject.name}) is timed for inference of '
                'one image on a CPU, in fp32, in the forms '
                f'{", ".join(WHOLE)}')
    pairs = [(subject, batch) for subject in subjects for batch in batches]
    groups = [pairs] if together else [[pair] for pair in pairs]
    rates, measurements = {}, []
    if on_cuda:
        torch.backends.cudnn.benchmark = True
        rates = gpu.rates({precision for _, precision in wanted})

    def result():
        medians = rates if on_cuda else {
            name: sorted(r)[len(r) // 2] for name, r in rates.items()}
        return dict(settings=settings, machine=machine(device), rates=medians,
                    measurements=measurements)

    for group in track(groups, 'timing', len(groups)):
        if monotonic() > deadline:
            break
        # Networks of a class share a limit, above which PyTorch compiles no
        # more. Nothing is reset before the group is timed: what is compiled
        # again at a later call is not frozen.
        torch.compiler.reset()
        limit = torch._dynamo.config.recompile_limit * len(group) * (
            len(wanted) if on_cuda else 1)
        with (tempfile.TemporaryDirectory() as folder,
              common.set_torch_threads(threads),
              torch.set_grad_enabled(train),
              torch._dynamo.config.patch(recompile_limit=limit)):
            cases = []
            for subject, batch in group:
                torch.manual_seed(0)
                x = torch.randn(batch, 3, size[0], size[-1],
                                device=gpu.DEVICE if on_cuda else device)
                cases += training_cases(
                    subject, x, wanted, deadline) if train else gpu.gpu_cases(
                        subject, x, wanted, deadline
                    ) if on_cuda else inference_cases(
                        subject, x, wanted, Path(folder), threads)
            products = []
            for precision in sorted({m['precision'] for m, _ in cases}
                                    & set(() if on_cuda else DTYPES)):
                a = torch.rand(SIDE, SIDE, device=device).to(DTYPES[precision])
                products.append(
                    (dict(macs=SIDE**3, batch=1, precision=precision),
                     lambda a=a: torch.mm(a, a)))
            time(cases + products, repeats, warmup, gpu.timer if on_cuda
                 else partial(cpu_timer, threads=threads))
        for m, _ in products:
            rates.setdefault(m['precision'], []).append(1e9 * m['gflops'])
        found = [m for m, _ in cases]
        del cases, x  # one group at a time in memory
        if on_cuda:
            torch.cuda.empty_cache()
        form = 'train' if train else 'plain'
        for m in found:
            base = [n['median'] for n in found
                    if n['form'] == form and 'median' in n and
                    (n['model'], n['batch']) == (m['model'], m['batch'])]
            if 'median' not in m:
                continue
            m['ratio'] = m['median'] / base[0] if base else None
            if on_cuda:
                gpu.add_limit(m, rates, size[0] * size[-1])
                continue
            peak = rates.get(m['precision'])
            m['share'] = 1e9 * m['gflops'] / peak[-1] if peak else None
        measurements += found
        save(result())
    return result()


def time(cases: list, repeats: int, warmup: int, timer: Callable) -> None:
    """Call all cases in each round; add the times and their statistics."""
    samplers = [timer(m, call) for m, call in cases]
    for _ in range(warmup + repeats):
        for sample in samplers:
            sample()
    for m in (m for m, _ in cases if 'failed' not in m):
        for name in {'seconds', 'device_seconds'} & m.keys():
            del m[name][:warmup]
            statistics = common.Measurement(
                1, m[name], common.TaskSpec('', ''))
            prefix = name.removesuffix('seconds')
            m[prefix + 'median'] = statistics.median
            m[prefix + 'spread'] = statistics.iqr / 2 / statistics.median
        m['gflops'] = 2e-9 * m['macs'] * m['batch'] / m['median']


def cpu_timer(m: dict, call: Callable, threads: int) -> Callable:
    """Adds a sample of a call."""
    timer = Timer('call()', globals=dict(call=call), num_threads=threads)
    # Two calls before it are not timed: the caches hold data of another form,
    # whose threads may still be busy-waiting.
    return lambda: m.setdefault('seconds', []).extend(timer.timeit(1).times)


def machine(device: str) -> dict[str, object]:
    """The processor, the system and the versions of packages."""
    name, more = platform.processor() or platform.machine(), {}
    cpuinfo = Path('/proc/cpuinfo')
    if device == 'cuda':
        more = gpu.properties()
        name = more.pop('name')
    elif cpuinfo.exists() and 'model name' in cpuinfo.read_text():
        name = cpuinfo.read_text().split('model name')[1].split('\n')[0][3:]
    packages = ('mmvanilla', 'torch', 'triton' if more else 'onnxruntime',
                'openvino')
    versions = {package: __import__(package).__version__.split('-')[0]
                for package in packages if find_spec(package)}
    return dict(name=name, capability=torch.backends.cpu.get_cpu_capability(),
                system=platform.platform(), python=platform.python_version(),
                versions=versions, date=strftime('%Y-%m-%d'), **more)


def table(result: dict[str, object]) -> str:
    """The measurements in Markdown, and a line on the machine."""
    settings, machine = result['settings'], result['machine']
    training, on_cuda = settings['train'], settings['device'] == 'cuda'
    columns = gpu.COLUMNS if on_cuda and not training else COLUMNS
    if training:
        columns = COLUMNS[:3] + [
            (f'{name} (MB)', name, '.0f', 1e-6) for name in MEMORY]
    rows, failed = [], []
    for m in result['measurements']:
        rows.append([
            m['model'], label(m['form']), m['precision'], str(m['batch'])])
        if 'failed' in m:
            failed.append(f'{", ".join(rows.pop())}: {m["failed"]}')
            continue
        m = m | m.get('memory', {})
        rows[-1] += ['-' if m.get(key) is None else
                     format(scale * m[key], form).replace('%', ' %')
                     for _, key, form, scale in columns]
    header = ['network', 'form', 'precision', 'batch'] + [
        name for name, *_ in columns]
    rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}'
                      for name, rate in result['rates'].items()
                      if name != 'copy')
    what = f'{settings["threads"]} threads'
    if on_cuda:
        what = f'copies: {result["rates"]["copy"] / 1e12:.2f} TB/s'
    side = gpu.SIDE if on_cuda else SIDE
    return '\n'.join([
        markdown_table(header, rows), *(f'\nFailed: {m}' for m in failed),
        f'\n{machine["name"]}, {what}; product of two {side} x {side} '
        f'matrices: {rates}. ' + ', '.join(
            map(' '.join, machine['versions'].items())) + '.'])


def label(form: str) -> str:
    """A form in words."""
    if form in LABELS:
        return LABELS[form]
    layout, network, compiler, graph = parts(form)
    words = (LABELS[network or 'plain'], layout, compiler, graph)
    return ', '.join(filter(None, words))


def plot(measurements: list[dict], result: dict, path: Path) -> None:
    """Draw latency, as measured, against accuracy, as published."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.add_subplot()
    lines, fastest, colors = {}, {}, {}
    for m in measurements:
        text = f'{label(m["form"])}, {m["precision"]}'
        lines.setdefault((m['model'].split('-')[0], text), []).append(m)
        fastest[m['model']] = min(
            m, fastest.get(m['model'], m), key=lambda m: m['median'])
    for (family, text), points in lines.items():
        points.sort(key=lambda m: m['accuracy'])
        axes.plot([1e3 * m['median'] for m in points],
                  [m['accuracy'] for m in points],
                  'o-' if family == 'VanillaNet' else 's--',
                  # One for each form, in all networks.
                  color=colors.setdefault(text, f'C{len(colors)}'),
                  label=f'{family}: {text}')
    for name, m in fastest.items():
        axes.annotate(name, (1e3 * m['median'], m['accuracy']),
                      textcoords='offset points', xytext=(-4, 5), fontsize=7,
                      ha='right' if name.startswith('Vanilla') else 'left')
    where = result['machine']['name']
    if result['settings']['device'] == 'cpu':
        where += f', {result["settings"]["threads"]} threads'
    axes.set_xlabel(f'latency, ms: batch {m["batch"]}, {where} (measured)')
    axes.set_ylabel('ImageNet top-1, % (as published)', fontsize=8)
    if result['settings']['device'] == 'cuda':
        axes.set_xscale('log')  # from the launches of Swin to our kernels
    else:
        axes.set(xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
