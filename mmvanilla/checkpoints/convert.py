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
from .official import describe, to_authors
from .read import read_checkpoint

# By an entry that only it has, the config of each official detector.
DETECTORS = {
    'bbox_head.retina_cls.weight': 'retinanet',
    'roi_head.mask_head.conv_logits.weight': 'mask-rcnn'
}


def convert(src: str | Path, dst: str | Path, to: str = 'mmvanilla',
            key: str | None = None, force: bool = False) -> str:
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
    model = describe(state_dict)
    if 'head' in model:
        notes = _settle_arch(model, f'{meta.get("model")} {src.stem}')
        cfg = _test_config(model)
        title = f'{model["head"]["num_classes"]} classes'
    else:
        cfg, notes = _detector_config(state_dict, model['backbone']), []
        title = cfg.model.type
    cfg.load_from = load_from
    with write_beside(dst, config) as (weights, py):
        torch.save(checkpoint, weights)
        py.write_text(cfg.pretty_text, encoding='utf-8')
    backbone = cfg.model.backbone
    form = 'deploy' if backbone.get('deploy') else 'train'
    lam = float(state_dict.get('backbone.stem.conv.act.lam', 1))
    if lam < 1:
        notes.append(f'Its deep training is unfinished: lambda is {lam:g}.')
    return '\n'.join([
        f'{src} -> {dst} and {config}', f'VanillaNet {backbone["arch"]}, '
        f'{form} form, n = {backbone["act_num"]}, {title}', *notes
    ])


def _to_authors(src: Path, key: str | None) -> tuple[dict, dict]:
    """Read a file of ours: its content, and the authors' checkpoint."""
    content = read_checkpoint(src)
    if not isinstance(content.get('meta'), dict):
        content['meta'] = {}
    try:
        weights = to_authors(content.get('state_dict'))
    except UserError as e:
        raise UserError(f'cannot convert {src}: {e}') from e
    if any(key.startswith('head.') for key in content['state_dict']):
        return content, {key or 'model': weights}
    classes = (content['meta'].get('dataset_meta') or {}).get('classes', ())
    return content, dict(
        meta=dict(CLASSES=tuple(classes)), state_dict=weights)


def _settle_arch(model: dict, name: str) -> list[str]:
    """Set ``arch`` by the names of model and file; return open questions."""
    arch = model['backbone']['arch']
    if isinstance(arch, dict):
        return ['Not the widths of a published variant: assuming stride 2 '
                'where the width grows, and no adaptive pooling. Correct arch '
                'in the config if the network was another.']
    if arch == '13-x1.5' and re.search('(?<![a-z])ada(?![a-z])', name):
        model['backbone']['arch'] = '13-x1.5-ada'
    elif arch == '13-x1.5' and not re.search('x1[._]5', name):
        return ['The tensors of 13-x1.5 and of 13-x1.5-ada are alike, and '
                'neither the file nor its args name one: assuming 13-x1.5. '
                'Correct arch in the config if the network was the other.']
    return []


def _test_config(model: dict) -> Config:
    base = root() / 'configs' / '_base_'
    config = Config.fromfile(base / 'default_runtime.py')
    data = Config.fromfile(base / 'datasets' / 'imagenet.py')
    data.data_preprocessor.num_classes = model['head']['num_classes']
    for key in ('data_preprocessor', 'test_dataloader', 'test_evaluator'):
        config[key] = data[key]
    config.update(model=model, test_cfg=dict())
    return config


def _detector_config(state_dict: dict, backbone: dict) -> Config:
    entry = next((key for key in DETECTORS if key in state_dict), None)
    if entry is None:
        raise UserError(
            'this is neither a RetinaNet nor a Mask R-CNN: it holds '
            f'{some([key for key in state_dict if "head" in key])}')
    require('mmdet')  # whose configs this one inherits from
    name = f'{DETECTORS[entry]}_vanillanet-13_fpn_8xb4-ms-1x_coco.py'
    cfg = Config.fromfile(root() / 'configs' / 'detection' / name)
    model = cfg.model
    model.backbone.update(backbone, type=model.backbone.type)
    model.backbone.pop('init_cfg', None)
    # Widths and numbers of classes may differ from those of the release.
    try:
        model.neck.in_channels = [
            state_dict[f'neck.lateral_convs.{i}.conv.weight'].shape[1]
            for i in range(len(model.neck.in_channels))
        ]
        classes, heads = len(state_dict[entry]), model.get('roi_head')
        if heads:
            heads.bbox_head.num_classes = classes
            heads.mask_head.num_classes = classes
        else:
            boxes = len(state_dict['bbox_head.retina_reg.weight'])
            model.bbox_head.num_classes = classes * 4 // boxes
    except (LookupError, TypeError, ZeroDivisionError) as e:
        raise UserError(f'this is not a whole {model.type}: {e}') from e
    return cfg
