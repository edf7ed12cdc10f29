# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""A detector's config in mmengine's new style, without a default scope."""
import json

import torch
from downstream.runs import CONFIGS
from mmengine.registry import DefaultScope
from tiny import call_tool, read

from mmvanilla.engine.predict import predict
from mmvanilla.utils.configs import read_config, scope_name

CONFIG = CONFIGS / 'retinanet_new_style.py'


def test_the_tools_know_its_toolbox(shapes, tmp_path, monkeypatch, capfd):
    # As a run of mmseg in the same process leaves it.
    DefaultScope.get_instance('of an earlier run', scope_name='mmseg')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'shapes').symlink_to(shapes)

    def call(*args):
        return call_tool(monkeypatch, capfd, *args, cwd=tmp_path)

    call('train.py', CONFIG, '--work-dir', 'work')
    cfg = read_config(str(CONFIG))
    assert cfg.default_scope is None and scope_name(cfg) == 'mmdet'
    saved = read_config(str(tmp_path / 'work' / CONFIG.name))
    assert 'pin_memory' not in saved.train_dataloader  # as mmdet's tools

    # Beside that bias, scores so early are nearly equal for all images.
    content = read(tmp_path / 'work' / 'epoch_1.pth')
    content['state_dict']['bbox_head.retina_cls.bias'].zero_()
    torch.save(content, tmp_path / 'trained.pth')
    out = ['--out', 'metrics.json', '--out-item', 'metrics']
    test = ['test.py', CONFIG, 'trained.pth', *out]
    call(*test, '--show-dir', 'shown')
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 'coco/bbox_mAP' in metrics
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 8
    call(*test, '--tta')

    call('reparam.py', CONFIG, 'trained.pth', 'merged.pth', '--samples', 4)
    call('test.py', 'merged.py', 'merged.pth', *out)
    merged = json.loads((tmp_path / 'metrics.json').read_text())
    assert merged.keys() == metrics.keys()
    for key in metrics:
        assert abs(merged[key] - metrics[key]) <= 1e-3, key

    image = str(shapes / 'val' / '0000.png')
    tables = [
        predict(image, str(config), str(tmp_path / weights), top=1)
        for config, weights in [(CONFIG, 'trained.pth'),
                                (tmp_path / 'merged.py', 'merged.pth')]
    ]
    assert '0000.png' in tables[0] and tables[0] == tables[1]
