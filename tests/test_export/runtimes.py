# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Which runtimes read an exported classifier: writes runtimes.json.

    python tests/test_export/runtimes.py FOLDER ...  # of other OpenCVs, from
    # `pip install --target FOLDER`; the installed one is tried too
"""
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

from narrow import randomize, relative_error  # noqa: E402

from mmvanilla.export.exported import Exported  # noqa: E402
from mmvanilla.export.formats import FORMATS, write  # noqa: E402
from mmvanilla.export.network import Network  # noqa: E402
from mmvanilla.models import VanillaNet, VanillaNetHead  # noqa: E402
from mmvanilla.utils.terminal import markdown_table  # noqa: E402

OUT = ROOT / 'docs' / 'figures' / 'runtimes.json'
NETWORKS = dict(digits=(32, 1, 10, [8, 16, 24], [2, 1]), in1k=(
    224, 3, 1000, [16, 24, 32, 48, 64], [2, 2, 2, 2]))
FILES = list(itertools.product(
    ('onnx', 'openvino'), ('fp32', 'fp16', 'int8'), (False, True)))
# In a process of its own, which may have another release of OpenCV.
READ = """
import sys, cv2, numpy as np
print(cv2.__version__)
x, y = (np.load(name) for name in sys.argv[1:3])
net = cv2.dnn.readNetFromONNX(sys.argv[3])
net.setInput(x)
print(np.linalg.norm(net.forward() - y) / np.linalg.norm(y))
"""


def measure(packages: list[str]) -> dict:
    """Errors by file, runtime and network; None where it is not read."""
    found, folder = {}, Path(tempfile.mkdtemp())
    for name, (size, channels, classes, dims, strides) in NETWORKS.items():
        net = randomize(Network(
            VanillaNet(dict(dims=dims, strides=strides), channels,
                       deploy=True),
            VanillaNetHead(classes, dims[-1], deploy=True)))
        pixels = torch.randint(0, 256, (9, size, size, channels)).byte()
        images = (pixels.permute(0, 3, 1, 2).float() - 120) / 60
        expected = [x.detach() for x in net(images[:1])]
        np.save(folder / 'y.npy', expected[0].numpy())
        for format, precision, is_uint8 in FILES:
            path = folder / f'net{FORMATS[format].suffix}'
            write(net, images[:1], path, format, precision,
                  calibration=list(images[1:, None]), preprocess=is_uint8,
                  metadata=dict(mean=[120.] * channels, std=[60.] * channels,
                                channel_order='RGB'))
            run, package = Exported(path, format), FORMATS[format].packages[-1]
            version = sys.modules[package].__version__.split('-')[0]
            row = found.setdefault(', '.join(
                [format, precision] + ['--preprocess'] * is_uint8), {})
            row.setdefault(f'{package} {version}', {})[name] = relative_error(
                run(images[:1]), expected)
            np.save(folder / 'x.npy', (pixels if is_uint8 else images)[:1])
            files = [folder / 'x.npy', folder / 'y.npy', path]
            for place in ('', *packages) if format == 'onnx' else ():
                version, *error = subprocess.run(
                    [sys.executable, '-c', READ, *files], text=True,
                    stdout=-1, env=dict(os.environ, PYTHONPATH=place)
                ).stdout.split()
                row.setdefault(f'OpenCV {version}', {})[name] = (
                    float(error[0]) if error else None)
    return found


def table(found: dict) -> str:
    runtimes = sorted({key for row in found.values() for key in row})
    return markdown_table(['file', *runtimes], [(file, *(', '.join(
        'not read' if x is None else f'{x:.0e}'
        for x in row.get(key, {}).values()) for key in runtimes))
        for file, row in found.items()])


if __name__ == '__main__':
    OUT.write_text(json.dumps(measure(sys.argv[1:]), indent=1) + '\n')
    print(table(json.loads(OUT.read_text())))
