# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What exported detectors and segmentors keep of their accuracy.

    python tests/downstream/exports.py

trains each narrow model on generated shapes (about 10 minutes on 2 cores),
exports it in each format and precision, and writes docs/figures/exports.json.
"""
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

from downstream.runs import train_and_merge  # noqa: E402
from downstream.shapes import generate  # noqa: E402

from mmvanilla.export import export  # noqa: E402
from mmvanilla.utils.configs import read_config  # noqa: E402
from mmvanilla.utils.terminal import markdown_table  # noqa: E402

OUT = ROOT / 'docs' / 'figures' / 'exports.json'
MODELS = {
    'retinanet': 'RetinaNet',
    'rtmdet': 'RTMDet',
    'mask-rcnn': 'Mask R-CNN',
    'upernet': 'UPerNet',
}
METRICS = {
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'mIoU': 'mIoU, %',
}
FILES = dict(
    onnx=('ONNX Runtime', '.onnx'), openvino=('OpenVINO', '.xml'))
PRECISIONS = ('fp32', 'int8')


def measure(name: str, shapes: Path, folder: Path) -> dict:
    """Train one model and export it; metrics and agreement of each file."""
    run = train_and_merge(name, shapes, folder)
    cfg = read_config(str(run.merged_config))
    result = {}
    for format, (_, suffix) in FILES.items():
        for precision in PRECISIONS:
            found = export(
                cfg, run.merged, folder / f'{precision}{suffix}', format,
                precision, samples=80, max_drop=100).verification
            result['PyTorch'] = {
                key: float(found.metrics[key][0]) for key in METRICS
                if key in found.metrics
            }
            result[f'{format}, {precision}'] = {
                key: float(found.metrics[key][1])
                for key in result['PyTorch']
            }
    return result


def table(content: dict) -> str:
    """The table of the docs, from the content of the JSON file."""
    rows = []
    for name, title in MODELS.items():
        found = content['models'][name]
        for key, metric in METRICS.items():
            if key not in found['PyTorch']:
                continue
            digits = 2 if key == 'mIoU' else 3
            rows.append(
                (title, metric, f'{found["PyTorch"][key]:.{digits}f}', *(
                    f'{found[f"{format}, {precision}"][key]:.{digits}f}'
                    for precision in PRECISIONS for format in FILES)))
    return markdown_table(
        ['model', '', 'PyTorch', *(f'{title}, {precision}'
                                   for precision in PRECISIONS
                                   for title, _ in FILES.values())], rows)


def main() -> None:
    content = dict(
        machine=f'{platform.platform()}, torch {torch.__version__}',
        models={})
    with tempfile.TemporaryDirectory() as folder:
        shapes = generate(Path(folder, 'shapes'))
        for name in MODELS:
            inside = Path(folder, name)
            inside.mkdir()
            content['models'][name] = measure(name, shapes, inside)
    OUT.write_text(json.dumps(content, indent=1) + '\n')
    print(table(content))


if __name__ == '__main__':
    main()
