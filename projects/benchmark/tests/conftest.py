# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import measure
import pytest
from subjects import resolve

from mmvanilla.models import VanillaNet


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Narrow VanillaNet-5 and ResNet-18, and a small matrix product."""

    def resolved(name):
        subject = resolve(name)
        if subject.arch:
            subject.cfg.model.head.in_channels = 8
        elif not subject.whole:
            subject.cfg.model.head.in_channels = 64
            subject.cfg.model.backbone.update(base_channels=8, stem_channels=8)
        return subject

    monkeypatch.setitem(VanillaNet.arch_settings, '5',
                        dict(dims=[4, 8, 8], strides=[2, 1]))
    monkeypatch.setattr(measure, 'resolve', resolved)
    # Some processors multiply bf16 a hundred times slower than fp32.
    monkeypatch.setattr(measure, 'SIDE', 256)
