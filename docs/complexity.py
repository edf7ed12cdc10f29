#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Count parameters and multiply-accumulates (MACs), and write the tables.

    python docs/complexity.py

counts the variants of VanillaNet at 224 x 224 in the three forms, and small
RTMDets in deploy form at 640 x 640, into docs/figures/complexity.json, and
writes the tables of variants in the READMEs from the metafile.
Needs mmdetection.
"""
import json
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.apis import ModelHub
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvanilla.layers import switch_to_deploy, switch_to_finetune
from mmvanilla.models import VanillaNet
from mmvanilla.utils.configs import build_model

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'docs' / 'figures' / 'complexity.json'
PAGES = ('README.md', 'README_zh-CN.md', 'configs/vanillanet/README.md')
DETECTORS = {
    'RTMDet-s': "_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'",
    'rtmdet_vanillanet-s': (
        f"_base_ = '{ROOT}/configs/detection/"
        "rtmdet_vanillanet-s_8xb32-300e_coco.py'"),
    'RTMDet-tiny': "_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'",
}


def count(network: nn.Module, size: int) -> dict[str, int]:
    """Count a network on the meta device, where nothing is computed."""
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, size, size))
    return dict(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2)


def forms(arch: str) -> dict[str, dict[str, int]]:
    """Count a variant's classifier in the three forms."""
    with torch.device('meta'):
        network = build_model(info(arch).config)
        counts = dict(train=count(network, 224))
        switch_to_finetune(network)
        counts['finetune'] = count(network, 224)
        switch_to_deploy(network)
        counts['deploy'] = count(network, 224)
    return counts


def info(arch: str):
    """A variant's entry in the metafile."""
    return ModelHub.get(f'vanillanet-{arch}_8xb128_in1k')


def with_table(text: str) -> str:
    """A page with the rows of its table of variants as the metafile says."""
    for arch in VanillaNet.arch_settings:
        found = info(arch)
        numbers = found.metadata.data
        millions, train = [numbers['Parameters' + form] / 1e6
                           for form in ('', ' (train form)')]
        macs, train_macs = [numbers['FLOPs' + form] / 1e9
                            for form in ('', ' (train form)')]
        top1 = found.results[0].metrics['Top 1 Accuracy']
        short = f'| {arch} | {millions:.1f} | {macs:.2f} | {top1:.2f} |'
        name = f'| `vanillanet-{arch}_8xb128_in1k`\\* |'
        long = (f'{name} {millions:.2f} | {train:.2f} | {macs:.2f} | '
                f'{train_macs:.2f} | {top1:.2f} |')
        for row, pattern in (
                (short, rf'^\| {re.escape(arch)} \|(?:[ \d.]+\|){{3}}$'),
                (long, rf'^{re.escape(name)}(?:[ \d.]+\|){{5}}')):
            text = re.sub(pattern, lambda _, row=row: row, text, flags=re.M)
    return text


def main() -> None:
    from mmdet.registry import MODELS
    detectors = {}
    with torch.device('meta'):
        for name, text in DETECTORS.items():
            detector = MODELS.build(Config.fromstring(text, '.py').model)
            switch_to_deploy(detector)
            detectors[name] = count(detector, 640)
    content = dict(
        command='python docs/complexity.py',
        variants_224={arch: forms(arch) for arch in VanillaNet.arch_settings},
        detectors_640=detectors)
    OUT.write_text(json.dumps(content, indent=1) + '\n')
    for page in PAGES:
        path = ROOT / page
        path.write_text(with_table(path.read_text(encoding='utf-8')),
                        encoding='utf-8')


if __name__ == '__main__':
    main()
