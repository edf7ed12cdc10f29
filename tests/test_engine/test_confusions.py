# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.fileio import load
from mmpretrain.structures import DataSample
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny import call_tool, refused, tiny_cfg

from mmvanilla.engine import confusions
from mmvanilla.engine.confusions import Confusions, contact_sheet

CLASSES = ['cat', 'dog', '猫']


def color(i: int) -> tuple:
    """No two images share a color."""
    return 5 * i, 255 - 5 * i, 90


def expected(path) -> tuple:
    """From the predictions of a test: the matrix, pairs, and worst images."""
    samples = load(path)
    label, scores = (np.array([x[key].numpy() for x in samples])
                     for key in ('gt_label', 'pred_score'))
    predicted = scores.argmax(1)  # --tta leaves the labels as they were
    matrix = confusion_matrix(label, predicted, labels=range(len(scores[0])))
    pairs = {f'{CLASSES[a]} taken for {CLASSES[b]}: {n} of {sum(row)}'
             for a, row in enumerate(matrix) for b, n in enumerate(row)
             if a != b and n and len(matrix) == 3}
    loss = -np.log(np.take_along_axis(scores, label, 1))[:, 0]
    return matrix, pairs, np.argsort(-loss)


def test_training_and_testing(tmp_path, monkeypatch, capfd):
    """Of random labels, which a network cannot learn, of plain images."""
    for i, label in enumerate(np.random.default_rng(0).integers(0, 3, 48)):
        for split in ('train', 'val'):
            path = tmp_path / 'images' / split / CLASSES[label] / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (20, 12), color(i)).save(path)
    cfg = tiny_cfg('work', epochs=2, decay_epochs=1)
    cfg.model.backbone.in_channels = 3
    cfg.model.data_preprocessor = dict(mean=[90] * 3, std=[90] * 3)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline = [
            dict(type='Resize', scale=(8, 8)), dict(type='PackInputs')]
    cfg.test_dataloader.sampler.shuffle = True  # images are still found
    cfg.default_hooks.checkpoint.save_best = 'auto'
    cfg.dump(tmp_path / 'config.py')
    call = partial(call_tool, monkeypatch, capfd, cwd=tmp_path)
    log = call('train.py', 'config.py', '--data', 'images')
    # Not one metric more, and the same one is the best.
    scalars, = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    names = {*re.findall(r'"(\w+/\w+)"', scalars.read_text())}
    assert names == {'accuracy/top1'}
    assert len([*(tmp_path / 'work').glob('best_accuracy_top1_*')]) == 1

    written = []
    monkeypatch.setattr(
        confusions, 'contact_sheet', lambda images, captions, path: (
            written.extend(captions), contact_sheet(images, captions, path)))
    printed = call('test.py', 'config.py', 'work/epoch_2.pth', '--data',
                   'images', '--out', 'out.pkl', '--worst', 3, 'a/b')
    matrix, pairs, worst = expected(tmp_path / 'out.pkl')
    rows = dict(re.findall(r'^\| (\w+) +\|([\d |]+)\|$', printed, re.M))
    assert [*rows] == CLASSES  # and in that order
    rows = [[*map(int, x.split('|'))] for x in rows.values()]
    assert rows == matrix.tolist()
    found = re.search('confused +(.*)', log)[1].split('; ')
    assert {*found} <= pairs and len(found) == min(3, len(pairs)) > 0
    # The picture has the colors of the three worst images, and no others.
    samples, sheet = load(tmp_path / 'out.pkl'), np.asarray(
        Image.open(tmp_path / 'a/b/worst.png').convert('RGB')).reshape(-1, 3)
    assert {*map(tuple, sheet.tolist())} & {*map(color, range(48))} == {
        color(int(Path(samples[i]['img_path']).stem)) for i in worst[:3]}
    assert [f'{tmp_path}/images/{x.split()[-1]}' for x in written] == [
        samples[i]['img_path'] for i in worst[:3]]


def test_many_classes(tmp_path, monkeypatch, capfd):
    """Only pairs; and the images of a data set that has no files."""
    cfg = tiny_cfg('work', epochs=1)
    cfg.model.head.num_classes = 40
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(
            classes=[f'c{i}' for i in range(40)])
    cfg.dump(tmp_path / 'config.py')
    call = partial(call_tool, monkeypatch, capfd, cwd=tmp_path)
    call('train.py', 'config.py', '--no-validate')
    args = ['test.py', 'config.py', 'work/epoch_1.pth']
    printed = call(*args, '--worst', 2, 'shown', '--out', 'out.pkl', '--tta')
    matrix, *_ = expected(tmp_path / 'out.pkl')
    np.fill_diagonal(matrix, 0)
    found = [int(x) for x in re.findall(r'^c\d+ taken for c\d+: (\d+) of',
                                        printed, re.M)]
    assert found == sorted(matrix[matrix > 0].tolist())[::-1][:10]
    assert (tmp_path / 'shown' / 'worst.png').is_file()
    (tmp_path / 'file').write_text('')
    for options, message in (
            (['0', 'x'], '1 to 200.* is 0'), (['x', 'x'], 'number is x'),
            (['3', 'file'], 'file: File exists'),
            (['3', 'shown'], 'shown/worst.png exists: give another')):
        assert re.search(message, refused(
            monkeypatch, capfd, *args, '--worst', *options, cwd=tmp_path))


def test_several_labels():
    """Are no error, and give no table."""
    found = Confusions([])
    samples = [DataSample().set_gt_label(x).set_pred_label([0]).set_pred_score(
        torch.tensor([0.7, 0.6, 0.1])).to_dict() for x in ([0, 2], [1])]
    found.process(None, samples)
    assert found.evaluate(2) == {} and found.pairs(3) == []
    found.process(None, samples[1:])
    assert found.evaluate(1) == {}
    assert found.pairs(3) == ['1 taken for 0: 1 of 1']
