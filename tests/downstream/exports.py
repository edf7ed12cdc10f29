# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What exported files keep of the metrics of their checkpoints.

    python tests/downstream/exports.py

trains a classifier on digits and narrow models on generated shapes, exports
each in each format and precision, and writes docs/figures/exports.json: the
metrics of tools/test.py, in about 20 minutes.
"""
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

from downstream.runs import Run, tool, train_and_merge  # noqa: E402
from downstream.shapes import generate  # noqa: E402
from tiny import DIGITS  # noqa: E402

from mmvanilla.export import export  # noqa: E402
from mmvanilla.export.formats import FORMATS  # noqa: E402
from mmvanilla.utils.configs import read_config  # noqa: E402
from mmvanilla.utils.terminal import markdown_table  # noqa: E402

OUT = ROOT / 'docs' / 'figures' / 'exports.json'
MODELS = {'digits': 'digits', 'retinanet': 'RetinaNet', 'rtmdet': 'RTMDet',
          'upernet': 'UPerNet', 'mask-rcnn': 'Mask R-CNN'}
METRICS = {'accuracy/top1': 'top-1, %', 'coco/bbox_mAP': 'box AP',
           'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU, %'}
TITLES = dict(onnx='ONNX', openvino='OpenVINO')


def train_digits(folder: Path) -> Run:
    """Train the classifier of digits and merge it."""
    log = tool('train.py', DIGITS, '--work-dir', folder, cwd=folder)
    checkpoint = Path((folder / 'last_checkpoint').read_text())
    merged = folder / 'merged.pth'
    tool('reparam.py', DIGITS, checkpoint, merged, cwd=folder)
    return Run(DIGITS, [], folder, checkpoint, log, merged)


def measure(name: str, shapes: Path, folder: Path) -> dict:
    """Train one model and export it; the metrics of each file."""
    run = (train_digits(folder) if name == 'digits' else
           train_and_merge(name, shapes, folder))
    result = {'checkpoint': run.test(), 'merged checkpoint': run.test_merged()}
    cfg = read_config(str(run.merged_config))
    for format, row in FORMATS.items():
        for precision in row.precisions:
            # Whole detectors and segmentors have two formats.
            if precision != 'bf16' and (name == 'digits' or format in TITLES):
                path = folder / f'{format}-{precision}{row.suffix}'
                export(cfg, run.merged, path, format, precision, max_drop=100)
                title = f'{TITLES.get(format, format)}, {precision}'
                result[title] = run.test(model=path)
    return {title: {key: float(value) for key, value in metrics.items()
                    if key in METRICS} for title, metrics in result.items()}


def table(content: dict) -> str:
    """The table of the docs, from the content of the JSON file."""
    models = content['models']
    columns = [(name, key) for name in MODELS for key in METRICS
               if key in models.get(name, {}).get('checkpoint', ())]
    rows = []
    for title in models['digits']:
        rows.append([title])
        for name, key in columns:
            value = models[name].get(title, {}).get(key)
            digits = 3 if key.startswith('coco') else 2
            rows[-1].append('' if value is None else f'{value:.{digits}f}')
    return markdown_table(
        ['', *(f'{MODELS[name]}, {METRICS[key]}' for name, key in columns)],
        rows)


def main() -> None:
    content = dict(models={}, machine=f'{platform.platform()}, torch '
                   f'{torch.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        shapes = generate(Path(folder, 'shapes'))
        for name in MODELS:
            content['models'][name] = measure(
                name, shapes, Path(tempfile.mkdtemp(dir=folder)))
            # After each, for a run that is killed.
            OUT.write_text(json.dumps(content, indent=1) + '\n')
    print(table(content))


if __name__ == '__main__':
    main()
