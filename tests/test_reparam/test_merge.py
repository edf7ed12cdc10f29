# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from narrow import MUTATIONS, randomize
from tiny import read, tiny_cfg

from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam import merge
from mmvanilla.utils.configs import build_model, read_config
from mmvanilla.utils.errors import UserError


@pytest.fixture
def network(tmp_path):
    """A classifier's config, the model and its checkpoint model.pth."""
    tiny_cfg(tmp_path).dump(tmp_path / 'config.py')
    cfg = read_config(str(tmp_path / 'config.py'))
    model = randomize(build_model(cfg))
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    return cfg, model, tmp_path / 'model.pth'


@pytest.mark.parametrize(
    'layer', ['backbone.stages.1.conv', 'backbone.stages.0.act.conv',
              'head.classifier'])
def test_mutations_are_caught(network, tmp_path, monkeypatch, layer):
    cfg, _, checkpoint = network
    before = sorted(tmp_path.iterdir())
    for mutation in MUTATIONS:

        def switch_and_mutate(model, mutation=mutation):
            count = switch_to_deploy(model)
            mutation(model.get_submodule(layer))
            return count

        monkeypatch.setattr(merge, 'switch_to_deploy', switch_and_mutate)
        with pytest.raises(UserError, match=layer.removesuffix('.act.conv')):
            merge.reparameterize(
                cfg, checkpoint, tmp_path / 'out.pth', samples=2)
    assert sorted(tmp_path.iterdir()) == before


def test_weights_of_other_modules_are_compared(network):
    _, model, _ = network
    model.neck = torch.nn.Linear(2, 2)
    merged = copy.deepcopy(model)
    switch_to_deploy(merged)
    merge.compare_layers(model, merged, 'model')
    merged.neck.bias.data[0] += 1e-6
    with pytest.raises(UserError, match='model: neck.bias has changed'):
        merge.compare_layers(model, merged, 'model')


def _wrong_bias(model):
    model.head.classifier.bias.data[0] += 1


def _wrong_head(model):
    model.head.register_forward_hook(
        lambda module, args, output: output * 1.001)


def _call_twice(model):
    predict = model.head.predict
    model.head.predict = lambda *args: [predict(*args) for _ in range(2)][0]


@pytest.mark.parametrize('change, message', [
    (_wrong_bias, 'head.classifier in float64 is'),
    (_wrong_head, r'output 1 of call 1 of head of sample \d is 0.001'),
    (_call_twice, 'only one of the models has output 1 of call 2 of head'),
])
def test_what_reading_changes_is_caught(network, tmp_path, monkeypatch,
                                        change, message):
    """The written files are compared, not the model in memory."""
    cfg, _, checkpoint = network
    load = merge.load_weights

    def load_weights(model, path):
        meta = load(model, path)
        if path.endswith('out.pth'):
            change(model)
        return meta

    monkeypatch.setattr(merge, 'load_weights', load_weights)
    with pytest.raises(UserError, match=message):
        merge.reparameterize(cfg, checkpoint, tmp_path / 'out.pth', samples=2)


def test_from_one_form_to_the_next(network, tmp_path):
    cfg, model, checkpoint = network
    out = tmp_path / 'finetune.pth'
    for form in ('finetune', 'deploy'):
        report = merge.reparameterize(
            cfg, checkpoint, out, samples=8, form=form)
        assert len(report.comparison.samples.batches) == 8
        content = read(out)
        error = content['meta']['max_relative_error']
        assert 0 < error == report.comparison.max_rel < 1e-5
        weights = content['state_dict']
        assert not any('conv1' in key for key in weights)
        assert any('norm' in key for key in weights) == (form == 'finetune')
        size = sum(w.nbytes for w in weights.values())
        assert report.after['bytes'] == size
        cfg, checkpoint = read_config(str(out.with_suffix('.py'))), out
        out = tmp_path / 'deploy.pth'
    switch_to_deploy(model)
    torch.testing.assert_close(
        dict(weights), dict(model.state_dict()), rtol=1e-5, atol=1e-6)


def test_constant_outputs(network, tmp_path):
    """Of an untrained network; the feature maps still show errors."""
    cfg, model, checkpoint = network
    model.head.classifier.conv2.weight.data.zero_()
    torch.save(model.state_dict(), checkpoint)
    report = merge.reparameterize(cfg, checkpoint, tmp_path / 'o.pth',
                                  samples=4)
    assert 'compared by the feature maps' in report.table()
