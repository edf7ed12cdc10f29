# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mutations import MUTATIONS, randomize
from tiny import read, tiny_cfg

from mmvanilla.layers import switch_to_deploy
from mmvanilla.reparam import merge, switch
from mmvanilla.reparam.compare_models import compare_models
from mmvanilla.utils.building import build_model, read_config
from mmvanilla.utils.data import real_batches
from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import is_ours


@pytest.fixture
def network(tmp_path):
    """A classifier's config, the model and its checkpoint model.pth."""
    cfg = tiny_cfg(tmp_path)
    cfg.dump(tmp_path / 'config.py')
    cfg = read_config(str(tmp_path / 'config.py'))
    model = build_model(cfg)
    randomize(model)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    return cfg, model, tmp_path / 'model.pth'


@pytest.mark.parametrize('mutation', MUTATIONS)
@pytest.mark.parametrize(
    'layer', ['backbone.stages.1.conv', 'backbone.stages.0.act.conv',
              'head.classifier'])
def test_mutations_are_caught(network, tmp_path, monkeypatch, mutation,
                              layer):
    cfg, _, checkpoint = network
    out = tmp_path / 'out.pth'

    def switch_and_mutate(model):
        count = switch_to_deploy(model)
        mutation(model.get_submodule(layer))
        return count

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(switch, 'switch_to_deploy', switch_and_mutate)
    with pytest.raises(UserError, match=layer.removesuffix('.act.conv')):
        merge.reparameterize(cfg, checkpoint, out, samples=2)
    assert sorted(tmp_path.iterdir()) == before


def test_what_reading_changes_is_caught(network, tmp_path, monkeypatch):
    """The written files are compared, not the model in memory."""
    cfg, _, checkpoint = network
    load = merge.load_weights

    def wrong_load(model, path):
        meta = load(model, path)
        model.head.classifier.bias.data[0] += 1
        return meta

    monkeypatch.setattr(merge, 'load_weights', wrong_load)
    with pytest.raises(UserError, match='relative error of head.classifier'):
        merge.reparameterize(cfg, checkpoint, tmp_path / 'out.pth', samples=2)


@pytest.mark.parametrize('form', ['deploy', 'finetune'])
def test_forms(network, tmp_path, form):
    cfg, model, checkpoint = network
    out = tmp_path / 'out.pth'
    report = merge.reparameterize(
        cfg, checkpoint, out, samples=8, form=form)
    assert is_ours(out) and is_ours(out.with_suffix('.py'))
    assert report.comparison.samples == 8
    assert 0 < report.comparison.outputs.max_rel < 1e-5
    keys = read(out)['state_dict'].keys()
    assert not any('conv1' in key for key in keys)
    assert any('norm' in key for key in keys) == (form == 'finetune')
    # Once more, over its own files; and from one form to the next.
    merge.reparameterize(cfg, checkpoint, out, samples=2, form=form)
    if form == 'finetune':
        second = merge.reparameterize(
            read_config(str(out.with_suffix('.py'))), out,
            tmp_path / 'second.pth', samples=2)
        assert second.comparison.outputs.max_rel < 1e-5
        merge.reparameterize(cfg, checkpoint, tmp_path / 'direct.pth',
                             samples=2)
        a, b = (read(tmp_path / name)['state_dict']
                for name in ('second.pth', 'direct.pth'))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=1e-5, atol=1e-6)


def test_files_of_others_stay(network, tmp_path):
    cfg, _, checkpoint = network
    out = tmp_path / 'out.pth'
    script = out.with_suffix('.py')
    script.write_text('print("mine")\n')
    with pytest.raises(UserError, match='mmvanilla did not write it'):
        merge.reparameterize(cfg, checkpoint, out, samples=2)
    assert script.read_text() == 'print("mine")\n' and not out.exists()
    merge.reparameterize(cfg, checkpoint, out, samples=2, force=True)
    assert is_ours(script)

    # Its base, even if we wrote it, and even by force.
    child = tmp_path / 'child.py'
    child.write_text("_base_ = './out.py'\n")
    with pytest.raises(UserError, match='which this command reads'):
        merge.reparameterize(
            read_config(str(child)), checkpoint, out, samples=2, force=True)


def test_base_in_the_new_style_stays(network, tmp_path):
    _, _, checkpoint = network
    text = (tmp_path / 'config.py').read_text()
    (tmp_path / 'out.py').write_text(text)
    (tmp_path / 'child.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .out import *\n')
    with pytest.raises(UserError, match='out.py, which this command reads'):
        merge.reparameterize(
            read_config(str(tmp_path / 'child.py')), checkpoint,
            tmp_path / 'out.pth', samples=2, force=True)


def _zero_head(model):
    model.head.classifier.conv2.weight.data.zero_()


def test_constant_outputs_are_refused(network, tmp_path):
    """Whatever is compared with them, nothing is shown."""
    cfg, model, _ = network
    _zero_head(model)
    torch.save(model.state_dict(), tmp_path / 'dead.pth')
    with pytest.raises(UserError, match='head.* same for all samples'):
        merge.reparameterize(
            cfg, tmp_path / 'dead.pth', tmp_path / 'out.pth', samples=4)


def test_empty_data(network, tmp_path):
    cfg, _, checkpoint = network
    loader = cfg.val_dataloader
    loader.drop_last, loader.batch_size = True, 64  # of 32 images
    with pytest.raises(UserError, match='val data of .* are empty'):
        merge.reparameterize(cfg, checkpoint, tmp_path / 'out.pth')
    loader.dataset.indices = 0
    with pytest.raises(UserError, match='cannot build the val data'):
        merge.reparameterize(cfg, checkpoint, tmp_path / 'out.pth')


@pytest.mark.parametrize('hook, message', [
    (lambda module, args, output: output * 1.001,
     'relative error of output 1 of call 1 of head of sample 1 is 0.001'),
    (lambda module, args, output: output * float('nan'), 'not finite')])
def test_outputs_are_compared(network, hook, message):
    """Of models with the same weights that compute otherwise."""
    cfg, model, _ = network
    converted = copy.deepcopy(model)
    switch_to_deploy(converted)
    batches = real_batches(cfg, 2)
    compare_models(model, converted, batches, 1e-4, 'model')
    converted.head.register_forward_hook(hook)
    with pytest.raises(UserError, match=message):
        compare_models(model, converted, batches, 1e-4, 'model')


def test_calls_are_compared(network):
    cfg, model, _ = network
    converted = copy.deepcopy(model)
    step = converted.test_step
    converted.test_step = lambda data: (step(copy.deepcopy(data)),
                                        step(data))[1]
    with pytest.raises(UserError, match='another number of outputs'):
        compare_models(model, converted, real_batches(cfg, 2), 1e-4, 'model')
