# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What an exported file tells of itself, docs/en/exported_files.md."""
import copy
import json
from contextlib import suppress

from mmengine.config import Config
from mmengine.dataset import Compose
from torch import Tensor, nn

from ..utils.configs import class_names, test_dataset
from ..version import __version__

FORMAT_VERSION = 2
HOSTS = 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'
# Types of what a file of this version tells.
FIELDS = dict(task=str, labels=list, input=str, input_size=list,
              preprocess=list | None, mean=list, std=list, channel_order=str,
              padding=dict | None)
# Transforms that a file can tell of, with their arguments.
STEPS = dict(
    LoadImageFromFile=('color_type', 'imdecode_backend'),
    ResizeEdge=('scale', 'edge', 'interpolation', 'backend'),
    Resize=('scale', 'keep_ratio', 'interpolation', 'backend'),
    CenterCrop=('crop_size', ),
    Pad=('size', 'size_divisor', 'pad_val'))
# Other arguments must have these values.
DEFAULTS = dict(auto_pad=False, pad_to_square=False, padding_mode='constant',
                scale_factor=None, to_float32=False)


def describe(cfg: Config, model: nn.Module, meta: dict, example: Tensor,
             task: str, dynamic_size: bool = False) -> dict[str, object]:
    """The metadata of the exported file: what a server needs to use it."""
    processor, size = model.data_preprocessor, list(example.shape[2:])
    divisor = getattr(processor, 'pad_size_divisor', None) or (
        getattr(processor, 'test_cfg', None) or {}).get('size_divisor') or 1
    part = 'backbone' if task == 'features' else 'model'
    padding = None
    if divisor > 1 or not (
            dynamic_size or task in ('classification', 'logits')):
        padding = dict(divisor=divisor) if dynamic_size else dict(size=size)
        padding['value'] = getattr(  # of normalized images
            processor, 'pad_value', getattr(processor, 'pad_val', 0))
    return dict(
        format_version=FORMAT_VERSION, version=__version__, part=part,
        task=task, labels=class_names(cfg, meta) if part == 'model' else [],
        input='normalized', input_size=size,
        preprocess=steps(cfg, example.shape[1]),
        **normalization(processor, example.shape[1]), padding=padding)


def parse(properties: dict[str, str]) -> dict[str, object]:
    """Metadata from texts of JSON; other tools may have added other texts."""
    metadata = {}
    for key, value in properties.items():
        with suppress(ValueError):
            metadata[key] = json.loads(value)
    if metadata.get('format_version') == FORMAT_VERSION:
        for key, kind in FIELDS.items():
            if not isinstance(metadata[key], kind):
                raise TypeError(key)
    return metadata


def normalization(processor: nn.Module, channels: int) -> dict[str, object]:
    """How a data preprocessor changes pixels."""
    mean, std = (getattr(processor, name, None) for name in ('mean', 'std'))
    # OpenMMLab reads images as BGR, and its preprocessors may convert them.
    converted = (getattr(processor, 'to_rgb', False)
                 or getattr(processor, '_channel_conversion', False))
    return dict(
        mean=[0.0] * channels if mean is None else mean.flatten().tolist(),
        std=[1.0] * channels if std is None else std.flatten().tolist(),
        channel_order='gray' if channels == 1 else
        'RGB' if converted else 'BGR')


def steps(cfg: Config, channels: int) -> list[dict[str, object]] | None:
    """The test pipeline up to the normalization; None if not known."""
    found = []
    pipeline = copy.deepcopy(test_dataset(cfg).get('pipeline') or [])
    for transform in Compose(pipeline).transforms:
        kind = type(transform)
        name = kind.__name__ * (kind.__module__.split('.')[0] in HOSTS)
        if name in STEPS and all(getattr(transform, key, value) == value
                                 for key, value in DEFAULTS.items()):
            found.append(dict(type=name) | {
                key: getattr(transform, key) for key in STEPS[name]})
        elif not name.startswith(('Pack', 'LoadAnnotations')):
            return None
    if not found or found[0]['type'] != 'LoadImageFromFile':
        found.insert(0, dict(  # the data set holds images, not files
            type='LoadImageFromFile', imdecode_backend='cv2',
            color_type='grayscale' if channels == 1 else 'color'))
    return json.loads(json.dumps(found))  # as a file has them: no tuples
