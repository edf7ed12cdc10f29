# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Converting a checkpoint file between the authors' format and ours."""
import re
from pathlib import Path

import torch
from mmengine import Config

from ..utils.errors import UserError
from ..utils.files import (
    MARK,
    check_output,
    replace_together,
    sha256,
    signed,
)
from ..utils.registration import root
from ..version import __version__
from .detectors import detector_config
from .hub import read_official_file
from .official import describe, is_detector, to_authors
from .safe_load import read_checkpoint
from .validate import check_state_dict


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
        force (bool): Whether to replace files that mmvanilla did not write.
            Defaults to False.

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
    if to == 'authors':
        state_dict, meta, checkpoint = _to_authors(src, key)
        load_from = f'vanillanet://{dst.resolve()}'
    else:
        state_dict, meta = read_official_file(src, key)
        load_from = str(dst.resolve())
        checkpoint = dict(
            state_dict=state_dict,
            meta=dict(
                meta,
                writer=MARK,
                source=src.name,
                source_sha256=sha256(src),
                mmvanilla_version=__version__))
    name = f'{meta.get("model")} {src.stem}'
    if is_detector(state_dict):
        cfg, title = detector_config(state_dict, load_from)
        notes = []
    else:
        model = describe(state_dict)
        notes = _settle_arch(model, name)
        cfg = _test_config(model, load_from)
        title = f'{model["head"]["num_classes"]} classes'
    with replace_together([dst, config]) as (weights, py):
        torch.save(checkpoint, weights)
        py.write_text(signed(cfg.pretty_text), encoding='utf-8')
    backbone = cfg.model.backbone
    return '\n'.join([
        f'{src} -> {dst} and {config}',
        f'VanillaNet {backbone["arch"]}, '
        f'{"deploy" if backbone.get("deploy") else "train"} form, '
        f'n = {backbone["act_num"]}, {title}', *notes
    ])


def _to_authors(src: Path, key: str | None) -> tuple[dict, dict, dict]:
    """Read a file of ours: state dict, meta, the authors' checkpoint."""
    content = read_checkpoint(src)
    state_dict = content.get('state_dict')
    if state_dict is None:
        raise UserError(f'{src} holds no state_dict: it is not a checkpoint '
                        'of mmvanilla')
    check_state_dict(state_dict, str(src))
    meta = content.get('meta', {})
    try:
        weights = to_authors(state_dict)
    except UserError as e:
        raise UserError(f'cannot convert {src}: {e}') from e
    if not is_detector(state_dict):
        return state_dict, meta, {key or 'model': weights, 'writer': MARK}
    dataset_meta = meta.get('dataset_meta') or {}
    classes = dict(CLASSES=tuple(dataset_meta.get('classes', ())))
    return state_dict, meta, dict(
        meta=dict(classes, writer=MARK), state_dict=weights)


def _settle_arch(model: dict, name: str) -> list[str]:
    """Set ``arch`` by name where tensors do not tell; return open questions.

    Args:
        model (dict): The model's config, changed in place.
        name (str): Names of the model and of the file.
    """
    arch = model['backbone']['arch']
    if isinstance(arch, dict):
        return [
            'Not the widths of a published variant: stride 2 is taken where '
            'the width grows, and no adaptive pooling. Correct arch in the '
            'config if the network was another.'
        ]
    if arch == '13-x1.5' and re.search('(?<![a-z])ada(?![a-z])', name):
        model['backbone']['arch'] = '13-x1.5-ada'
    elif arch == '13-x1.5' and not re.search('x1[._]5', name):
        return [
            'The tensors of 13-x1.5 and of 13-x1.5-ada are alike, and neither '
            'the file nor its args name one: 13-x1.5 is taken. Correct arch '
            'in the config if the network was the other.'
        ]
    return []


def _test_config(model: dict, load_from: str) -> Config:
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
    config.load_from = load_from
    return config
