# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""No error in a merged detector or segmentor reaches its file."""
import copy
from itertools import product

import pytest
import torch
from downstream.runs import CONFIGS
from mutations import MUTATIONS, randomize

from mmvanilla.checkpoints import load_weights
from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam import merge, switch
from mmvanilla.reparam.compare_models import compare_models
from mmvanilla.utils.building import build_model, read_config, scope_of
from mmvanilla.utils.data import random_batches
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


@pytest.fixture(scope='module', params=LAYERS)
def network(request, tmp_path_factory):
    """Name, config and checkpoint of a narrow network."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = read_config(str(CONFIGS / f'{request.param}_shapes.py'))
    model = build_model(cfg)
    randomize(model)
    torch.save(model.state_dict(), folder / 'model.pth')
    return request.param, cfg, folder / 'model.pth'


def test_merges_and_every_mutation_is_caught(network, tmp_path, monkeypatch):
    name, cfg, checkpoint = network
    out = tmp_path / 'out.pth'
    report = merge.reparameterize(cfg, checkpoint, out, samples=2)
    assert 0 < report.comparison.outputs.max_rel < 1e-4
    assert report.comparison.outputs.count > 10
    out.unlink()
    missed = []
    for mutation, layer in product(MUTATIONS, LAYERS[name]):

        def switch_and_mutate(model, mutation=mutation, layer=layer):
            count = switch_to_deploy(model)
            mutation(model.get_submodule(layer))
            return count

        monkeypatch.setattr(switch, 'switch_to_deploy', switch_and_mutate)
        try:
            merge.reparameterize(cfg, checkpoint, out, samples=2)
        except UserError:
            continue
        missed.append((mutation.__name__, layer))
    assert not missed and not out.exists()


def test_outputs_of_every_head_are_compared(network):
    """Where weights are equal and only what is computed differs."""
    name, cfg, checkpoint = network
    model = build_model(cfg)
    load_weights(model, str(checkpoint))
    batches = random_batches(cfg, 2)
    for layer in LAYERS[name][1:]:
        if layer.startswith('auxiliary'):
            continue  # is of training alone
        converted = copy.deepcopy(model)
        switch_to_deploy(converted)
        converted.get_submodule(layer).register_forward_hook(
            lambda module, args, output: output * 1.001)
        with scope_of(cfg), pytest.raises(
                UserError, match=f'relative error of .* of {layer} '):
            compare_models(model, converted, batches, 1e-4, 'model')
