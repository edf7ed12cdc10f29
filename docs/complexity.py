#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Count parameters and multiply-accumulates (MACs) of the networks on pages.

    python docs/complexity.py

counts the variants of VanillaNet at 224 x 224 in the three forms, and small
RTMDets in deploy form at 640 x 640, and writes docs/figures/complexity.json.
Needs mmdetection.
"""
import json
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from mmvanilla.benchmark.forms import count_macs
from mmvanilla.benchmark.networks import vanillanet
from mmvanilla.layers import switch_to_deploy, switch_to_finetune
from mmvanilla.models import VanillaNet
from mmvanilla.utils.files import MARK, replace_atomically

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'docs' / 'figures' / 'complexity.json'
DETECTORS = {
    'RTMDet-s': "_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'",
    'rtmdet_vanillanet-s': (
        f"_base_ = '{ROOT}/configs/detection/"
        "rtmdet_vanillanet-s_8xb32-300e_coco.py'"),
    'RTMDet-tiny': "_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'",
}


def count(network: nn.Module, size: int) -> dict[str, int]:
    return dict(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=count_macs(network.eval(), torch.empty(1, 3, size, size)))


def forms(arch: str) -> dict[str, dict[str, int]]:
    network = vanillanet(arch, deploy=False)
    counts = dict(train=count(network, 224))
    switch_to_finetune(network)
    counts['finetune'] = count(network, 224)
    switch_to_deploy(network)
    counts['deploy'] = count(network, 224)
    return counts


def detector(text: str) -> nn.Module:
    model = MODELS.build(Config.fromstring(text, '.py').model)
    switch_to_deploy(model)
    return model


def main() -> None:
    # Nothing is computed: tensors on the meta device have shapes alone.
    with torch.device('meta'):
        variants = {
            arch: forms(arch) for arch in VanillaNet.arch_settings
        }
        detectors = {
            name: count(detector(text), 640)
            for name, text in DETECTORS.items()
        }
    content = dict(
        comment=MARK,
        command='python docs/complexity.py',
        variants_224=variants,
        detectors_640=detectors)
    with replace_atomically(OUT) as path:
        path.write_text(json.dumps(content, indent=1) + '\n')
    print('wrote', OUT.relative_to(ROOT))


if __name__ == '__main__':
    main()
