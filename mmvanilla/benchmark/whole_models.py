# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Whole models of any toolbox, by their configs: detectors, segmentors.

Their weights are random. How long the non-maximum suppression of a detector
takes depends on how many boxes it gets, so the threshold of the scores is set
to one that leaves :data:`DETECTIONS`.
"""
import copy
import logging
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..export.network import make_network
from ..layers import switch_to_deploy
from ..utils.building import SCOPES, build_model, read_config, scope_of
from ..utils.errors import UserError
from ..utils.requirements import require
from .networks import Subject

DETECTIONS = 100
FORMS = ('train', 'plain', 'channels_last', 'onnxruntime', 'openvino')


def check_whole(subjects: Sequence[Subject], forms: Sequence[tuple[str, str]],
                batches: Sequence[int], train: bool) -> None:
    """Refuse what a whole model is not timed in.

    Args:
        subjects (Sequence[Subject]): All networks.
        forms (Sequence[tuple[str, str]]): Forms and their precisions.
        batches (Sequence[int]): Batch sizes.
        train (bool): Whether training steps are timed.

    Raises:
        UserError: If one of the networks is of a config, and another form
            than :data:`FORMS`, a precision but fp32, a batch size but 1 or
            training is asked for.
    """
    configs = [subject.config for subject in subjects if subject.config]
    if configs and (train or set(batches) != {1} or any(
            form not in FORMS or precision != 'fp32'
            for form, precision in forms)):
        raise UserError(
            f'a whole model ({configs[0]}) is timed for inference, in fp32, '
            f'with one image at a time and in the forms {", ".join(FORMS)}')


@torch.no_grad()
def whole_networks(config: str, x: Tensor) -> dict[str, nn.Module]:
    """A config's model in train form, where it has one, and merged.

    Args:
        config (str): A path, or 'mmdet::' and a path inside of its configs.
        x (Tensor): A normalized image, (1, 3, H, W).

    Returns:
        dict[str, nn.Module]: 'plain', the merged model, and 'train', as
        :func:`mmvanilla.export.network.make_network` makes them.

    Raises:
        UserError: If the config cannot be read or built, or the model cannot
            be exported whole.
    """
    cfg = _read(config)
    with scope_of(cfg):
        model = build_model(cfg)
        head = getattr(model, 'roi_head', getattr(model, 'bbox_head', None))
        if head is not None:
            logging.disable(logging.INFO)  # it logs each parameter
            head.init_weights()
            logging.disable(logging.NOTSET)
            _normalize(model, x)
            head.test_cfg.score_thr = 0.0
            scores = make_network(model, 'model', x)(x)[1][:DETECTIONS]
            if not len(scores):
                raise UserError(f'{config} detects nothing in an image of '
                                f'{tuple(x.shape[2:])}: take a larger --size')
            # A little below, so that rounding changes no detection.
            head.test_cfg.score_thr = 0.9999 * scores.min().item()
        merged = copy.deepcopy(model)
        layers = switch_to_deploy(merged)
        networks = dict(plain=make_network(merged, 'model', x))
        if layers:
            networks['train'] = make_network(model, 'model', x)
    return networks


def _normalize(model: nn.Module, x: Tensor) -> None:
    """Give batch norms the statistics of an image.

    In an untrained network the signal fades from layer to layer, and the
    scores would be the same everywhere.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = 1.0
            norm.train()
    feats = model.extract_feat(x)
    if hasattr(model, 'bbox_head'):
        model.bbox_head(feats)
    model.eval()


def _read(config: str) -> Config:
    package, separator, _ = config.partition('::')
    if not separator:
        return read_config(config)
    if package in SCOPES:
        require(package)
    try:
        return get_config(config)
    except Exception as e:  # a config is a program: it may raise anything
        raise UserError(f'cannot read {config} as a config of {package}: '
                        f'{str(e).splitlines()[0]}') from e
