# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Put the first pictures of a folder into one.

    python tests/downstream/montage.py FOLDER OUT.png [ROWS COLUMNS]
"""
import sys
from pathlib import Path

import cv2
import numpy as np


def main(folder: str, out: str, rows: int = 2, columns: int = 2) -> None:
    paths = [p for p in sorted(Path(folder).rglob('*')) if p.is_file()]
    paths = paths[:rows * columns]
    images = [cv2.imread(str(path)) for path in paths]
    lines = [
        np.hstack(images[row * columns:(row + 1) * columns])
        for row in range(rows)
    ]
    cv2.imwrite(out, np.vstack(lines))


if __name__ == '__main__':
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
