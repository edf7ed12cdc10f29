# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Map keys between the authors' format and ours; describe networks."""
import math
import re

import torch
from torch import Tensor, nn

from ..models import VanillaNet, VanillaNetHead
from ..utils.errors import UserError
from ..utils.terminal import some
from .read import check_weights, official_prefix

# Each row is one module: our name, the authors' in train and in deploy form.
MODULES = [
    ('backbone.stem.conv.conv1', 'stem1.0', None),
    ('backbone.stem.conv.norm1', 'stem1.1', None),
    ('backbone.stem.conv.conv2', 'stem2.0', None),
    ('backbone.stem.conv.norm2', 'stem2.1', None),
    ('backbone.stem.conv', None, 'stem.0'),
    ('backbone.stem.act.conv', 'stem2.2', 'stem.1'),
    ('backbone.stem.act.norm', 'stem2.2.bn', None),
    ('backbone.stages.{}.conv.conv1', 'stages.{}.conv1.0', None),
    ('backbone.stages.{}.conv.norm1', 'stages.{}.conv1.1', None),
    ('backbone.stages.{}.conv.conv2', 'stages.{}.conv2.0', None),
    ('backbone.stages.{}.conv.norm2', 'stages.{}.conv2.1', None),
    ('backbone.stages.{}.conv', None, 'stages.{}.conv'),
    ('backbone.stages.{}.act.conv', 'stages.{}.act', 'stages.{}.act'),
    ('backbone.stages.{}.act.norm', 'stages.{}.act.bn', None),
    ('head.classifier.conv1', 'cls1.2', None),
    ('head.classifier.norm1', 'cls1.3', None),
    ('head.classifier.conv2', 'cls2.0', None),
    ('head.classifier', None, 'cls.2'),
]
# By form: ends of a layer's first and last convolution, arguments.
FORMS = [('.conv1', '.conv2', dict(deploy=False)),
         ('.conv', '.conv', dict(deep_training=False)),
         ('', '', dict(deploy=True))]
STEM = 'backbone.stem.conv'


def _rename(state_dict: dict[str, Tensor], names: dict[str, str],
            keep_others: bool) -> dict[str, Tensor]:
    """Rename modules in keys; ``keep_others`` is for a detector's heads."""
    renamed = {}
    for key, value in state_dict.items():
        module, _, entry = key.rpartition('.')
        stage = re.findall(r'stages\.(\d+)', module) or ['']
        name = names.get(module.replace(f'stages.{stage[0]}', 'stages.{}', 1))
        if name:
            key = f'{name.format(stage[0])}.{entry}'
        elif not keep_others or key.startswith('backbone.'):
            raise UserError(f'{key} is not an entry of a VanillaNet')
        renamed[key] = value
    return renamed


def from_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the keys of an official state dict to ours.

    Args:
        state_dict (dict): Of a classifier, in train or deploy form, with or
            without the prefix ``module.``; or of a detector of mmdet.

    Returns:
        dict: State dict of an ``ImageClassifier`` or a detector with our
        keys. In train form it also has lambda, which is 1 in official weights
        and not stored in their format.

    Raises:
        UserError: If keys are missing, unexpected or mismatched.
    """
    check_weights(state_dict, 'it')
    prefix = official_prefix(state_dict) or ''
    form = 2 if f'{prefix}stem.0.weight' in state_dict else 1
    names = {f'{prefix}{row[form]}': row[0] for row in MODULES if row[form]}
    ours = _rename(state_dict, names, keep_others=prefix == 'backbone.')
    for layer in [key[:-13] for key in ours if key.endswith('.conv1.weight')]:
        ours[f'{layer}.act.lam'] = torch.tensor(1.0, dtype=torch.float64)
    describe(ours)
    return ours


def authors_lam(checkpoint: dict, source) -> float:
    """Lambda at the epoch of a checkpoint of the authors' training."""
    args = checkpoint.get('args') or {}
    args = args if isinstance(args, dict) else getattr(args, '__dict__', {})
    epoch, length = checkpoint.get('epoch'), args.get('decay_epochs')
    if not length:
        return 1.0
    try:
        progress = min(1.0, int(epoch) / length)
    except (OverflowError, TypeError, ValueError):
        raise UserError(
            f'{source} does not tell lambda, since its epoch is {epoch!r}: '
            'give the checkpoint-N.pth of an epoch, or, if lambda had reached '
            '1, a file of the weights only') from None
    linear = args.get('decay_linear', True)
    return progress if linear else 0.5 * (1 - math.cos(math.pi * progress))


def to_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the keys of our state dict to those of the authors' format.

    Args:
        state_dict (dict): With our keys, of an ``ImageClassifier`` or a
            detector, in train or deploy form.

    Returns:
        dict: The same tensors with the authors' keys.

    Raises:
        UserError: If keys are missing, unexpected or mismatched, lambda is
            not 1, or the state dict is in fine-tune form. The authors' format
            has neither.
    """
    check_weights(state_dict, 'it')
    config = describe(state_dict)
    if 'deep_training' in config['backbone']:
        raise UserError("the authors' format does not have the fine-tune form "
                        'of this state dict: merge it to deploy form first')
    tensors = {}
    for key, value in state_dict.items():
        if not key.endswith('.act.lam'):
            tensors[key] = value
        elif value != 1:
            raise UserError(f"{key} is {float(value):g}, but the authors' "
                            'format has no lambda: it must be 1')
    form = 2 if config['backbone'].get('deploy') else 1
    prefix = '' if 'head' in config else 'backbone.'
    names = {row[0]: f'{prefix}{row[form]}' for row in MODULES if row[form]}
    return _rename(tensors, names, keep_others=bool(prefix))


def describe(state_dict: dict[str, Tensor]) -> dict:
    """Infer the config of a network from a state dict with our keys.

    The tensors do not hold the strides: a stage has stride 2 where its width
    is larger than that of the stage before, as in all published variants.
    '13-x1.5' is returned for '13-x1.5-ada', whose tensors have the same
    shapes.

    Args:
        state_dict (dict): Of an ``ImageClassifier`` or a detector, in any of
            the three forms.

    Returns:
        dict: Config of the ``ImageClassifier``; of a detector, only its
        ``backbone``. ``arch`` is a published variant's name, or a dict.

    Raises:
        UserError: If keys are missing, unexpected or mismatched; names the
            first few.
    """

    def shape(name: str) -> torch.Size:
        found = getattr(state_dict.get(f'{name}.weight'), 'shape', ())
        if len(found) != 4:
            raise UserError(f'{name} of a VanillaNet is missing; the keys are '
                            f'{some(list(state_dict))}')
        return found

    first, last, form = next(
        (row for row in FORMS if f'{STEM}{row[0]}.weight' in state_dict),
        FORMS[0])
    dims = [shape(STEM + last)[0]]
    while any(key.startswith(f'backbone.stages.{len(dims) - 1}.')
              for key in state_dict):
        dims.append(shape(f'backbone.stages.{len(dims) - 1}.conv{last}')[0])
    strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
    arch = next((name for name, setting in VanillaNet.arch_settings.items()
                 if list(setting['dims']) == dims),
                dict(dims=dims, strides=strides))
    config = dict(
        backbone=dict(
            arch=arch, in_channels=shape(STEM + first)[1],
            act_num=shape('backbone.stem.act.conv')[-1] // 2, **form))
    detector = not any(key.startswith('head.') for key in state_dict) and any(
        not key.startswith('backbone.') for key in state_dict)
    if not detector:
        if 'head.classifier.weight' in state_dict:
            first = last = ''  # in fine-tune form too
        config['head'] = dict(
            num_classes=shape(f'head.classifier{last}')[0],
            in_channels=shape(f'head.classifier{first}')[1], **form)
    types = dict(backbone=VanillaNet, head=VanillaNetHead)
    try:
        with torch.device('meta'):
            network = nn.ModuleDict(
                {part: types[part](**config[part]) for part in config})
    except (ValueError, RuntimeError) as e:
        raise UserError(f'not the shapes of a VanillaNet: {e}') from e
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    found = {key: value.shape for key, value in state_dict.items()
             if not detector or key.startswith('backbone.')}
    # A checkpoint without lambda loads as lambda 1.
    wrong = [key for key in {**wanted, **found}
             if wanted.get(key) != found.get(key)
             and (key in found or not key.endswith('.act.lam'))]
    if wrong:
        raise UserError('these keys of a VanillaNet are missing, unexpected '
                        f'or mismatched: {some(wrong)}')
    config = {part: dict(type=types[part].__name__, **config[part])
              for part in config}
    return config if detector else dict(type='ImageClassifier', **config)
