# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Figures in the pages are those of JSON files; docstrings tell everything."""
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator

import pytest
import yaml
from downstream import exports
from mmpretrain.apis import ModelHub
from tiny import ROOT

from mmvanilla.benchmark.networks import PAPER_ACCURACY
from mmvanilla.benchmark.report import MEMORY, Benchmark, Measurement

FIGURES = ROOT / 'docs' / 'figures'
BENCHMARKS = ('inference', 'training', 'training-13', 'retinanet', 'rtmdet')
PERFORMANCE = 'docs/en/performance.md'
DETECTION = 'docs/en/detection_segmentation.md'
DETECTION_ZH = 'docs/zh_cn/detection_segmentation.md'


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding='utf-8'))


def read_benchmark(name: str) -> Benchmark:
    content = read(f'docs/figures/{name}.json')
    fields = {field.name for field in dataclasses.fields(Measurement)}
    measurements = [
        Measurement(**{k: m[k] for k in fields})
        for m in content['measurements']
    ]
    return Benchmark(content['settings'], content['machine'],
                     content['rates'], measurements)


# ------------------------------------------------------------------- tables


@pytest.mark.parametrize('name', BENCHMARKS)
def test_benchmark(name, monkeypatch):
    benchmark, text = read_benchmark(name), page(PERFORMANCE)
    assert f'\n{benchmark.table()}\n' in text
    assert f'`docs/figures/{name}.json` holds' in text
    # The command beside the table has the settings of the file.
    (command, ) = re.findall(
        rf'^python (tools/benchmark\.py .*--out docs/figures/{name}( .*)?)$',
        text.replace('\\\n', ' '), re.M)
    monkeypatch.setattr(sys, 'argv', shlex.split(command[0]))
    tool = runpy.run_path(str(ROOT / 'tools' / 'benchmark.py'))
    arguments = vars(tool['parse_args']())
    settings = dict(benchmark.settings)
    assert sizes(settings.pop('size')) == sizes(arguments.pop('size'))
    assert {k: arguments[k] for k in settings} == settings


def sizes(size: int | list[int]) -> list[int]:
    """Height and width, of one number or two."""
    return (2 * [size] if isinstance(size, int) else 2 * size)[:2]


def millions(count: int, digits: int) -> str:
    return f'{count / 1e6:.{digits}f}'


def billions(count: int) -> str:
    return f'{count / 1e9:.2f}'


@pytest.mark.parametrize('name', ['README.md', 'README_zh-CN.md'])
def test_table_of_variants(name):
    variants = read('docs/figures/complexity.json')['variants_224']
    assert list(variants) == list(PAPER_ACCURACY)
    rows = [
        f'| {arch} | {millions(forms["deploy"]["parameters"], 1)} | '
        f'{billions(forms["deploy"]["macs"])} | {PAPER_ACCURACY[arch]:.2f} |'
        for arch, forms in variants.items()
    ]
    assert '| --- |\n' + '\n'.join(rows) + '\n\n' in page(name)


def test_metafile_has_the_same_counts():
    """tests/test_utils compares it with networks and with its README."""
    models = yaml.safe_load(page('configs/vanillanet/metafile.yml'))['Models']
    found = {model['Name']: model['Metadata'] for model in models}
    variants = read('docs/figures/complexity.json')['variants_224']
    assert found == {
        f'vanillanet-{arch}_8xb128_in1k': {
            'Parameters': forms['deploy']['parameters'],
            'FLOPs': forms['deploy']['macs'],
            'Parameters (train form)': forms['train']['parameters'],
            'FLOPs (train form)': forms['train']['macs'],
        }
        for arch, forms in variants.items()
    }


@pytest.mark.parametrize('name', [DETECTION, DETECTION_ZH])
def test_table_of_detectors(name):
    detectors = read('docs/figures/complexity.json')['detectors_640']
    assert list(detectors)[1] == 'rtmdet_vanillanet-s'
    rows = [
        f'| {model} | {millions(counts["parameters"], 2)} | '
        f'{billions(counts["macs"])} |' for model, counts in detectors.items()
    ]
    assert '| --- |\n' + '\n'.join(rows) + '\n\n' in page(name)


def test_table_of_exported_files():
    content = read('docs/figures/exports.json')
    assert f'\n{exports.table(content)}\n' in page(DETECTION)
    for found in content['models'].values():
        for name, metrics in found.items():
            for key in found['PyTorch'] if name.endswith('fp32') else ():
                assert round(metrics[key], 3) == round(
                    found['PyTorch'][key], 3)


def test_table_of_techniques():
    rows = {}
    for row in read('projects/ablation/results/techniques.json')['rows']:
        rows.setdefault(row['group'], []).append(row)
    text = page('docs/en/experiments.md')
    names = ['neither', 'deep training', 'series activation', 'both']
    assert f'3 seeds | {" | ".join(names)} |' in text
    for network, found in rows.items():
        assert [row['name'] for row in found] == names
        assert all(len(row['accuracies']) == 3 for row in found)
        cells = ' | '.join(
            f'{row["mean"]:.2f} ± {row["std"]:.2f}' for row in found)
        width = r'\(1/\d+( as wide)?\)'
        assert re.search(rf'\| {network} {width} {re.escape(f"| {cells} |")}',
                         text)


# ---------------------------------------------------------------- sentences


def of(benchmark: Benchmark, model: str, form: str,
       precision: str = 'fp32') -> Measurement:
    (found, ) = [
        m for m in benchmark.measurements
        if (m.model, m.form, m.precision) == (model, form, precision)
    ]
    return found


def ratios(benchmark: Benchmark, form: str) -> str:
    return ' / '.join(f'{of(benchmark, f"VanillaNet-{arch}", form).ratio:.2f}'
                      for arch in (6, 9, 13))


def sentences() -> list[tuple[str, str]]:
    """Each page's sentences with a figure, written from the JSON files."""
    inference, step, step_13, retinanet, rtmdet = map(read_benchmark,
                                                       BENCHMARKS)
    # How many times as fast as VanillaNet-9 a ResNet-50 is, in each form.
    times = [
        of(inference, 'VanillaNet-9', m.form, m.precision).median / m.median
        for m in inference.measurements if m.model == 'ResNet-50'
    ]
    low, high = f'{min(times):.1f}', f'{max(times):.1f}'
    resnet_faster = (f'On a CPU, a ResNet-50 is {low} to {high} times as fast '
                     'as VanillaNet-9, which has the same accuracy')
    resnet_faster_zh = ('在 CPU 上，ResNet-50 的速度是精度相同的'
                        f'VanillaNet-9 的 {low} 到 {high} 倍')
    macs = [
        billions(of(inference, model, 'plain').macs)
        for model in ('VanillaNet-9', 'ResNet-50')
    ]
    recipe = 'resnet50_8xb256-rsb-a2-300e_in1k'
    accuracy = ModelHub.get(recipe).results[0].metrics['Top 1 Accuracy']

    complexity = read('docs/figures/complexity.json')
    sizes = [
        forms[form]['parameters'] / forms['train']['parameters']
        for forms in complexity['variants_224'].values()
        for form in ('finetune', 'deploy')
    ]
    smallest, largest = f'{100 * min(sizes):.0f}', f'{100 * max(sizes):.0f}'
    ours, theirs = [
        complexity['detectors_640'][name]
        for name in ('rtmdet_vanillanet-s', 'RTMDet-s')
    ]

    savings = []
    for benchmark, model in ((step, 'VanillaNet-6'),
                             (step_13, 'VanillaNet-13')):
        train = of(benchmark, model, 'train')
        finetune = of(benchmark, model, 'finetune')
        memory = finetune.memory[MEMORY[-1]] / train.memory[MEMORY[-1]]
        savings.append((f'{finetune.ratio:.2f}', f'{memory:.2f}'))
    (time_6, memory_6), (time_13, memory_13) = savings
    resnet_step = (of(step, 'ResNet-50', 'plain').median /
                   of(step, 'VanillaNet-6', 'train').median)
    detectors = []
    for benchmark in (retinanet, rtmdet):
        ours_, theirs_ = dict.fromkeys(m.model for m in benchmark.measurements)
        detectors += [
            f'{of(benchmark, ours_, form).median / other:.2f}'
            for form, other in (
                ('onnxruntime', of(benchmark, theirs_, 'onnxruntime').median),
                ('openvino', of(benchmark, theirs_, 'openvino').median),
                ('plain', of(benchmark, ours_, 'train').median))
        ]
    return [
        ('README.md', 'It has 5 to 13 plain layers. After training it merges '
         f'into a network with the same outputs and {smallest} to {largest} '
         '% of the parameters.'),
        ('README.md', resnet_faster),
        ('README_zh-CN.md',
         f'输出相同、参数量为原来 {smallest} % 到 {largest} % 的网络'),
        ('README_zh-CN.md', resnet_faster_zh),
        ('docs/en/how_it_works.md', 'same outputs, '
         f'{smallest} to {largest} % of the parameters'),
        ('docs/en/faq.md', resnet_faster),
        ('docs/zh_cn/faq.md', resnet_faster_zh),
        (PERFORMANCE, f'VanillaNet-9 ({PAPER_ACCURACY["9"]} % on ImageNet in '
         f'the paper) multiplies {macs[0]} G times per image in 9 layers.'),
        (PERFORMANCE, f'({accuracy} %, `{recipe}` of mmpretrain), multiplies '
         f'{macs[1]} G times in 50 layers.'),
        (PERFORMANCE, f'ResNet-50 is {low} to {high} times as fast as '
         'VanillaNet-9 in the forms and runtimes of the table below.'),
        (PERFORMANCE, 'For VanillaNet-6 / -9 / -13 the ratio of `inductor` is '
         f'{ratios(inference, "inductor")} (the targets were 0.55 / 0.58 / '
         f'0.66) and that of `eager` is {ratios(inference, "eager")} (0.59 / '
         '0.73 / 0.83).'),
        (PERFORMANCE, f'A step in fine-tune form takes {time_6} of the time '
         f'and {memory_6} of the peak memory of a step in train form for '
         f'VanillaNet-6, {time_13} and {memory_13} for VanillaNet-13. A step '
         f'of ResNet-50 takes {resnet_step:.2f} of the time of VanillaNet-6 '
         'in train form'),
        (PERFORMANCE, 'In ONNX Runtime / OpenVINO, RetinaNet on VanillaNet-13 '
         f'takes {detectors[0]} / {detectors[1]} of the time of RetinaNet on '
         f'ResNet-50, and RTMDet on the narrow VanillaNet {detectors[3]} / '
         f'{detectors[4]} of the time of RTMDet-s.'),
        (PERFORMANCE, f'Merged, they take {detectors[2]} and {detectors[5]} '
         'of the time of the train form in PyTorch.'),
        ('projects/ablation/README.md', 'At full width a step in fine-tune '
         f'form takes {time_6} of the time (docs/en/performance.md).'),
        ('configs/detection/rtmdet_vanillanet-s_8xb32-300e_coco.py',
         f'{millions(ours["parameters"], 2)} M parameters and '
         f'{ours["macs"] / 1e9:.1f} GMACs at 640 x 640 '
         f'({millions(theirs["parameters"], 2)} M, '
         f'{theirs["macs"] / 1e9:.1f} G).'),
    ]


def squeezed(text: str) -> str:
    """Without line breaks, spaces and the comment signs of a config."""
    return re.sub(r'\n# |\s', '', text)


def test_sentences():
    missing = [(name, sentence) for name, sentence in sentences()
               if squeezed(sentence) not in squeezed(page(name))]
    assert not missing


def test_published_latencies_are_the_same_everywhere():
    text = page(PERFORMANCE)

    def row(names: str) -> list[list[str]]:
        (cells, ) = re.findall(rf'^\| {names} \| (.*) \|$', text, re.M)
        return [cell.split(' / ') for cell in cells.split(' | ')]

    ours = [cell[1] for cell in row('VanillaNet-8 / 9 / 10')]
    resnet = [cell[2] for cell in row('ResNet-18 / 34 / 50')]
    times = [f'{float(b) / float(a):.1f}' for a, b in zip(ours, resnet)]
    assert (f'VanillaNet-9 is {times[0]} times as fast as ResNet-50 in '
            f'PyTorch and {times[2]} times in TensorRT fp16') in text
    assert (f'reports {ours[0]} ms for VanillaNet-9 on an A100 at batch 1, '
            f'against {resnet[0]} ms for ResNet-50') in page('docs/en/faq.md')
    assert (f'VanillaNet-9 在 A100、批量 1 时为 {ours[0]} ms，ResNet-50 为 '
            f'{resnet[0]} ms') in page('docs/zh_cn/faq.md')


def test_each_file_of_figures_is_named_in_a_page():
    pages = [ROOT / 'README.md', *(ROOT / 'docs' / 'en').glob('*.md')]
    text = ''.join(path.read_text(encoding='utf-8') for path in pages)
    names = {path.name for path in FIGURES.glob('*.json')}
    assert names >= {f'{name}.json' for name in BENCHMARKS}
    assert [n for n in names if f'docs/figures/{n}' not in text] == []


# ----------------------------------------------------------------- Chinese


def commands(text: str) -> set[str]:
    """Lines of a page's bash blocks, without comments."""
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    lines = [re.sub(r'\s+# .*', '', line) for line in
             ''.join(blocks).splitlines()]
    return set(filter(None, lines))


@pytest.mark.parametrize(
    'name', [path.name for path in (ROOT / 'docs' / 'zh_cn').glob('*.md')])
def test_chinese_page_has_commands_of_the_english_one(name):
    found, known = [
        commands(page(f'docs/{language}/{name}'))
        for language in ('zh_cn', 'en')
    ]
    assert found <= known


def test_chinese_readme_has_the_same_commands():
    assert commands(page('README_zh-CN.md')) == commands(page('README.md'))


# ------------------------------------------------------------ API reference

PACKAGES = [
    'mmvanilla.benchmark', 'mmvanilla.checkpoints', 'mmvanilla.datasets',
    'mmvanilla.engine', 'mmvanilla.evaluation', 'mmvanilla.export',
    'mmvanilla.layers', 'mmvanilla.models', 'mmvanilla.reparam',
    'mmvanilla.utils'
]


def public_objects() -> dict[str, object]:
    """Each public function and class, by the name it is imported by."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f'{package.__name__}.{name}'] = value
    return found


PUBLIC = public_objects()


def sections(docstring: str) -> dict[str, str]:
    """The text under each heading of a docstring; '' is the text before."""
    parts = re.split(r'^(\w+):\n(?= )', inspect.cleandoc(docstring),
                     flags=re.M)
    return {'': parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def entries(section: str) -> dict[str, str]:
    """The text of each parameter in a section."""
    parts = re.split(r'^(\*{0,2}\w+)(?: \([^)]*\))?: ',
                     inspect.cleandoc('\n' + section), flags=re.M)
    return {
        name: ' '.join(text.split())
        for name, text in zip(parts[1::2], parts[2::2])
    }


def stated_default(text: str) -> object:
    """The value behind 'Defaults to'."""
    stated = re.search(
        r"Defaults to (?:``(.+?)``|('[^']*')|(\(.*?\))|(\S+?)[.,:]?(?: |$))",
        text)
    assert stated, text
    value = next(filter(None, stated.groups()))
    return eval(value, dict(dict=dict))


def untold_args(docs: dict[str, str], function: Callable) -> Iterator[str]:
    """Parameters and defaults that are not as the signature has them."""
    told = entries(docs.get('Args', ''))
    for parameter in inspect.signature(function).parameters.values():
        name = {
            parameter.VAR_POSITIONAL: '*',
            parameter.VAR_KEYWORD: '**'
        }.get(parameter.kind, '') + parameter.name
        if name == 'self':
            continue
        if name not in told:
            yield f'{name} is not in Args'
        elif parameter.default is parameter.empty:
            continue
        elif 'Defaults to' not in told[name]:
            yield f'the default of {name} is not told'
        elif (name != 'init_cfg'  # in words
              and stated_default(told[name]) != parameter.default):
            yield f'the default of {name} is {parameter.default}'


def untold_errors(told: str, function: Callable) -> Iterator[str]:
    """Errors that a function raises itself, not those of what it calls."""
    for error in set(re.findall(r'\braise (\w*Error)\b',
                                inspect.getsource(function))):
        if error not in told:
            yield f'{function.__name__} raises {error}'


def all_problems(value: object) -> list[str]:
    docs = sections(value.__doc__)
    if inspect.isfunction(value):
        found = [
            *untold_args(docs, value),
            *untold_errors(docs.get('Raises', ''), value)
        ]
        returned = inspect.signature(value).return_annotation
        if returned is not None and not {'Returns', 'Yields'} & set(docs):
            found.append('what it returns is not told')
        return found
    if dataclasses.is_dataclass(value):
        told = entries(docs['Attributes'])
        return [
            f'{field.name} is not in Attributes'
            for field in dataclasses.fields(value) if field.name not in told
        ]
    found = []
    if '__init__' in vars(value):
        found += untold_args(docs, value.__init__)
    members = list(filter(inspect.isfunction, vars(value).values()))
    told = docs.get('Raises', '')
    for member in members:
        own = sections(member.__doc__ or '')
        told += own.get('Raises', '')
        if 'Args' in own:
            found += untold_args(own, member)
    for member in members:
        found += untold_errors(told, member)
    return found


@pytest.mark.parametrize('name', PUBLIC)
def test_docstring(name):
    assert all_problems(PUBLIC[name]) == []
