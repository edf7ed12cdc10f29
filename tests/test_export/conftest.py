# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.runner import Runner
from narrow import METADATA, classifier, needs
from tiny import DIGITS

from mmvanilla.export.backends import BACKENDS, write
from mmvanilla.utils.building import read_config


@pytest.fixture(scope='session', params=BACKENDS)
def exported(request, tmp_path_factory):
    """A format, and :func:`classifier` in it, with all that is dynamic."""
    format = request.param
    needs(*BACKENDS[format].PACKAGES)
    path = tmp_path_factory.mktemp(format) / f'net{BACKENDS[format].SUFFIX}'
    write(
        classifier(),
        torch.randn(1, 3, 64, 64),
        path,
        format,
        dynamic_batch=True,
        dynamic_size=True,
        metadata=METADATA)
    return format, path


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """The digits' config, narrowed, and a checkpoint of it, well trained."""
    folder = tmp_path_factory.mktemp('digits')
    cfg = read_config(str(DIGITS))
    cfg.merge_from_dict(
        dict(
            work_dir=str(folder),
            model=dict(
                backbone=dict(
                    arch=dict(
                        dims=[32, 64, 96], strides=[2, 2], _delete_=True)),
                head=dict(in_channels=96)),
            train_cfg=dict(max_epochs=6, val_interval=6),
            default_hooks=dict(
                checkpoint=dict(interval=6), logger=dict(interval=100)),
            param_scheduler=dict(T_max=6)))
    cfg.custom_hooks = [dict(type='DeepTrainingHook', decay_epochs=3)]
    cfg.experiment_name = 'export_digits'
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    return cfg, folder / 'epoch_6.pth'
