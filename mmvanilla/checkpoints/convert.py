# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a checkpoint file between the authors' format and ours."""
import re
from pathlib import Path

import torch
from mmengine import Config

from ..utils.errors import UserError
from ..utils.files import check_output, write_beside
from ..utils.requirements import require
from ..utils.terminal import some
from .hub import SCHEME, read_official, root
from .official import describe, describe_backbone, is_detector, to_authors
from .read import read_checkpoint

# Configs of the two detectors of the authors' release, each with an entry
# that only this one has.
DETECTORS = {
    'bbox_head.retina_cls.weight':
    'retinanet_vanillanet-13_fpn_8xb4-ms-1x_coco.py',
    'roi_head.mask_head.conv_logits.weight':
    'mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco.py'
}


def convert(src: str | Path,
            dst: str | Path,
            to: str = 'mmvanilla',
            key: str | None = None,
            force: bool = False) -> str:
    """Convert a checkpoint file between the authors' format and ours.

    Beside ``dst`` it writes a config with the suffix ``.py`` that builds the
    network, with the test pipeline of ImageNet or COCO, and loads the file.
    Weights converted to the other format and back are bit-identical.

    Args:
        src (str | Path): The file to read: a classifier, or one of the two
            official detectors.
        dst (str | Path): The file to write.
        to (str): 'mmvanilla' or 'authors'. Defaults to 'mmvanilla'.
        key (str, optional): The entry of the authors' file that is read or
            written. Defaults to None: reads 'model_ema', or 'model' if there
            is none, and writes 'model'. Detectors always have 'state_dict'.
        force (bool): Whether to replace existing files. Defaults to False.

    Returns:
        str: Lines that name the files, the network and open questions.

    Raises:
        UserError: If ``src`` cannot be read or is in another format, ``dst``
            cannot be written, or ``to`` is unknown. No file is left then.
    """
    if to not in ('mmvanilla', 'authors'):
        raise UserError(f'to must be mmvanilla or authors, got {to}')
    src, dst = Path(src), Path(dst)
    config = dst.with_suffix('.py')
    if dst == config:
        raise UserError(f'cannot write to {dst}: a config of that name is '
                        'written beside the checkpoint')
    for path in (dst, config):
        check_output(path, [src], force)
    load_from = str(dst.resolve())
    if to == 'authors':
        load_from = SCHEME + load_from
        content, checkpoint = _to_authors(src, key)
    else:
        content = checkpoint = read_official(src, key)
    state_dict, meta = content['state_dict'], content['meta']
    if is_detector(state_dict):
        cfg, notes = _detector_config(state_dict), []
        title = cfg.model.type
    else:
        model = describe(state_dict)
        notes = _settle_arch(model, f'{meta.get("model")} {src.stem}')
        cfg = _test_config(model)
        title = f'{model["head"]["num_classes"]} classes'
    cfg.load_from = load_from
    with write_beside(dst, config) as (weights, py):
        torch.save(checkpoint, weights)
        py.write_text(cfg.pretty_text, encoding='utf-8')
    backbone = cfg.model.backbone
    return '\n'.join([
        f'{src} -> {dst} and {config}',
        f'VanillaNet {backbone["arch"]}, '
        f'{"deploy" if backbone.get("deploy") else "train"} form, '
        f'n = {backbone["act_num"]}, {title}', *notes
    ])


def _to_authors(src: Path, key: str | None) -> tuple[dict, dict]:
    """Read a file of ours: its content, and the authors' checkpoint."""
    content = read_checkpoint(src)
    if 'state_dict' not in content:
        raise UserError(f'{src} holds no state_dict: it is not a checkpoint '
                        'of mmvanilla')
    meta = content.get('meta')
    content['meta'] = meta = meta if isinstance(meta, dict) else {}
    try:
        weights = to_authors(content['state_dict'])
    except UserError as e:
        raise UserError(f'cannot convert {src}: {e}') from e
    if not is_detector(content['state_dict']):
        return content, {key or 'model': weights}
    classes = (meta.get('dataset_meta') or {}).get('classes', ())
    return content, dict(
        meta=dict(CLASSES=tuple(classes)), state_dict=weights)


def _settle_arch(model: dict, name: str) -> list[str]:
    """Set ``arch`` by names where tensors do not tell; return open questions.

    ``name`` has the names of the model and of the file.
    """
    arch = model['backbone']['arch']
    if isinstance(arch, dict):
        return [
            'Not the widths of a published variant: assuming stride 2 where '
            'the width grows, and no adaptive pooling. Correct arch in the '
            'config if the network was another.'
        ]
    if arch == '13-x1.5' and re.search('(?<![a-z])ada(?![a-z])', name):
        model['backbone']['arch'] = '13-x1.5-ada'
    elif arch == '13-x1.5' and not re.search('x1[._]5', name):
        return [
            'The tensors of 13-x1.5 and of 13-x1.5-ada are alike, and neither '
            'the file nor its args name one: assuming 13-x1.5. Correct arch '
            'in the config if the network was the other.'
        ]
    return []


def _test_config(model: dict) -> Config:
    """Make a config that tests a model on ImageNet."""
    base = root() / 'configs' / '_base_'
    config = Config.fromfile(base / 'default_runtime.py')
    data = Config.fromfile(base / 'datasets' / 'imagenet.py')
    config.data_preprocessor = dict(
        data.data_preprocessor, num_classes=model['head']['num_classes'])
    config.model = model
    config.test_dataloader = data.test_dataloader
    config.test_evaluator = data.test_evaluator
    config.test_cfg = dict()
    return config


def _detector_config(state_dict: dict) -> Config:
    """Make the config that builds a detector from its state dict."""
    entry = next((key for key in DETECTORS if key in state_dict), None)
    if entry is None:
        raise UserError(
            'this is neither a RetinaNet nor a Mask R-CNN: it holds '
            f'{some([key for key in state_dict if "head" in key])}')
    backbone = describe_backbone(state_dict)
    require('mmdet')  # whose configs this one inherits from
    cfg = Config.fromfile(root() / 'configs' / 'detection' / DETECTORS[entry])
    model = cfg.model
    model.backbone.update({k: v for k, v in backbone.items() if k != 'type'})
    model.backbone.pop('init_cfg', None)
    # Widths and numbers of classes may differ from those of the release.
    try:
        model.neck.in_channels = [
            state_dict[f'neck.lateral_convs.{i}.conv.weight'].shape[1]
            for i in range(len(model.neck.in_channels))
        ]
        if 'roi_head' in model:
            for head in (model.roi_head.bbox_head, model.roi_head.mask_head):
                head.num_classes = state_dict[entry].shape[0]
        else:
            anchors = state_dict['bbox_head.retina_reg.weight'].shape[0] // 4
            model.bbox_head.num_classes = (
                state_dict[entry].shape[0] // anchors)
    except KeyError as e:
        raise UserError(
            f'the entry {e} of a {model.type} is missing') from e
    return cfg
