# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What exported detectors and segmentors keep of their accuracy.

    python tests/downstream/exports.py

trains each narrow model on generated shapes, exports it in each format and
precision, and writes docs/figures/exports.json, in about 10 minutes.
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
MODELS = {'retinanet': 'RetinaNet', 'rtmdet': 'RTMDet',
          'mask-rcnn': 'Mask R-CNN', 'upernet': 'UPerNet'}
METRICS = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP',
           'mIoU': 'mIoU, %'}
FILES = dict(onnx=('ONNX Runtime', '.onnx'), openvino=('OpenVINO', '.xml'))
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
            for i, key in enumerate(('PyTorch', f'{format}, {precision}')):
                result[key] = {
                    name: float(found.metrics[name][i])
                    for name in METRICS if name in found.metrics}
    return result


def table(content: dict) -> str:
    """The table of the docs, from the content of the JSON file."""
    columns = {'PyTorch': 'PyTorch'}
    for precision in PRECISIONS:
        columns |= {f'{format}, {precision}': f'{title}, {precision}'
                    for format, (title, _) in FILES.items()}
    rows = []
    for name, title in MODELS.items():
        found = content['models'][name]
        for key in filter(found['PyTorch'].get, METRICS):
            digits = 2 if key == 'mIoU' else 3
            rows.append((title, METRICS[key], *(
                f'{found[column][key]:.{digits}f}' for column in columns)))
    return markdown_table(['model', '', *columns.values()], rows)


def main() -> None:
    content = dict(models={}, machine=f'{platform.platform()}, torch '
                   f'{torch.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        shapes = generate(Path(folder, 'shapes'))
        for name in MODELS:
            content['models'][name] = measure(
                name, shapes, Path(tempfile.mkdtemp(dir=folder)))
    OUT.write_text(json.dumps(content, indent=1) + '\n')
    print(table(content))


if __name__ == '__main__':
    main()
