# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Converting a checkpoint file between the authors' format and ours."""
from pathlib import Path

import torch
from mmengine import Config

from ..utils.errors import UserError
from ..utils.files import check_writable, replace_atomically, sha256
from ..utils.registration import root
from ..version import __version__
from .hub import read_official_file
from .official import describe, to_authors
from .safe_load import read_checkpoint


def convert(src: str | Path,
            dst: str | Path,
            to: str = 'mmvanilla',
            key: str | None = None) -> str:
    """Convert a checkpoint file between the authors' format and ours.

    Beside ``dst`` it writes a config with the same name that builds the
    network, with ImageNet's test pipeline, and loads the file. There and back
    the weights are bit-identical.

    Args:
        src (str | Path): The file to read.
        dst (str | Path): The file to write.
        to (str): 'mmvanilla' or 'authors'. Defaults to 'mmvanilla'.
        key (str, optional): The entry of the authors' file that is read or
            written. Defaults to None: reads 'model_ema', or 'model' where
            there is none, and writes 'model'.

    Returns:
        str: What was converted, in some lines.

    Raises:
        UserError: If ``src`` cannot be read or is in another format, or
            ``dst`` cannot be written; neither file is left then.
    """
    src, dst = Path(src), Path(dst)
    config = dst.with_suffix('.py')
    if dst.resolve() in (src.resolve(), config.resolve()):
        raise UserError(f'cannot write to {dst}: it is the file to read, or '
                        'the name of the config that is written beside')
    check_writable(dst)
    if to == 'authors':
        state_dict, name = read_checkpoint(src).get('state_dict'), src.stem
        if state_dict is None:
            raise UserError(f'{src} holds no state_dict: it is not a '
                            'checkpoint of mmvanilla')
        try:
            model = describe(state_dict)
            checkpoint = {key or 'model': to_authors(state_dict)}
        except UserError as e:
            raise UserError(f'cannot convert {src}: {e}') from e
        load_from = f'vanillanet://{dst.resolve()}'
    else:
        state_dict, name = read_official_file(src, key)
        model = describe(state_dict)
        meta = dict(
            source=src.name,
            source_sha256=sha256(src),
            mmvanilla_version=__version__)
        checkpoint = dict(state_dict=state_dict, meta=meta)
        load_from = str(dst.resolve())

    notes = _settle_arch(model, f'{name} {src.stem}')
    with replace_atomically(dst) as weights, replace_atomically(config) as py:
        torch.save(checkpoint, weights)
        _test_config(model, load_from).dump(py)
    backbone = model['backbone']
    return '\n'.join([
        f'{src} -> {dst} and {config}',
        f'VanillaNet {backbone["arch"]}, '
        f'{"deploy" if backbone["deploy"] else "train"} form, '
        f'n = {backbone["act_num"]}, '
        f'{model["head"]["num_classes"]} classes', *notes
    ])


def _settle_arch(model: dict, name: str) -> list[str]:
    """Settle what tensors cannot tell by names, and say what is left open."""
    arch = model['backbone']['arch']
    if isinstance(arch, dict):
        return [
            'Not the widths of a published variant: stride 2 is taken where '
            'the width grows, and no adaptive pooling. Correct arch in the '
            'config if the network was another.'
        ]
    if arch == '13-x1.5' and 'ada' in name:
        model['backbone']['arch'] = '13-x1.5-ada'
    elif arch == '13-x1.5' and 'x1_5' not in name:
        return [
            'The tensors of 13-x1.5 and of 13-x1.5-ada are alike, and neither '
            'the file nor its args name one: 13-x1.5 is taken. Correct arch '
            'in the config if the network was the other.'
        ]
    return []


def _test_config(model: dict, load_from: str) -> Config:
    """Config that tests a model on ImageNet."""
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
