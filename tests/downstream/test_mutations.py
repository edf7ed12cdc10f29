# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""No error in a merged detector or segmentor reaches its file."""
from itertools import product

import pytest
import torch
from downstream.runs import CONFIGS
from narrow import MUTATIONS, randomize

from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam import merge
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError

# A merged layer and one of each head.
LAYERS = {
    'retinanet': ['backbone.stages.1.conv', 'bbox_head.retina_cls'],
    'mask-rcnn': ['backbone.stem.act.conv', 'rpn_head.rpn_cls',
                  'roi_head.bbox_head.fc_cls',
                  'roi_head.mask_head.conv_logits'],
    'upernet': ['backbone.stages.1.conv', 'decode_head.conv_seg',
                'auxiliary_head.conv_seg'],
}


@pytest.mark.parametrize('name', LAYERS)
def test_merges_and_every_mutation_is_caught(name, tmp_path, monkeypatch):
    cfg = read_config(str(CONFIGS / f'{name}_shapes.py'))
    model = build_model(cfg)
    randomize(model)
    checkpoint, out = tmp_path / 'model.pth', tmp_path / 'out.pth'
    torch.save(model.state_dict(), checkpoint)
    report = merge.reparameterize(cfg, checkpoint, out, samples=2)
    assert 0 < report.comparison.max_rel < 1e-4
    assert sum(total for total, _ in report.comparison.counts.values()) > 0
    out.unlink()
    out.with_suffix('.py').unlink()
    missed = []
    for mutation, layer in product(MUTATIONS, LAYERS[name]):

        def switch_and_mutate(model, mutation=mutation, layer=layer):
            count = switch_to_deploy(model)
            mutation(model.get_submodule(layer))
            return count

        monkeypatch.setattr(merge, 'switch_to_deploy', switch_and_mutate)
        try:
            merge.reparameterize(cfg, checkpoint, out, samples=2)
        except UserError:
            continue
        missed.append((mutation.__name__, layer))
    assert not missed and not out.exists()
