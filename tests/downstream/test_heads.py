# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""MMVANILLA_ALL_HEADS=1 also tests the heads that take long."""
import json
import os

import pytest
import torch
from downstream.heads import (
    DETECTORS,
    OUT,
    SEGMENTORS,
    compare,
    table,
    train_and_merge,
)
from tiny import ROOT

# Seconds each, or tested in test_detection.py and test_segmentation.py.
SLOW = {'FreeAnchor', 'FoveaBox', 'PAA', 'GFL', 'VarifocalNet', 'Faster R-CNN',
        'Mask R-CNN', 'Cascade R-CNN', 'Sparse R-CNN', 'SOLOv2',
        'Deformable DETR', 'DINO', 'PSPNet', 'DeepLabV3+', 'UPerNet'}
HEADS = [
    name for name in [*DETECTORS, *SEGMENTORS]
    if name not in SLOW or os.environ.get('MMVANILLA_ALL_HEADS')
]


def test_page():
    """The page has the table of the file, and the file all heads."""
    rows = json.loads(OUT.read_text())
    assert [row['head'] for row in rows] == [*DETECTORS, *SEGMENTORS]
    for row in rows:
        assert row['relative_error'] < 1e-5
        assert row['same'] >= 0.99 * row['predictions'] > 0
    page = ROOT / 'docs' / 'en' / 'detection_segmentation.md'
    assert f'\n{table(rows)}\n' in page.read_text()


@pytest.mark.parametrize('name', HEADS)
def test_trains_and_merges(name):
    model, merged, loss, unmoved = train_and_merge(name)
    assert torch.isfinite(loss)
    assert not unmoved
    error, (total, same) = compare(name, model, merged)
    assert error < 1e-5
    assert total > 0 and same >= 0.99 * total
