# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""State dicts of the authors' release under our names, and back."""
import re
from collections import OrderedDict

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor

from ..models import VanillaNet
from ..utils.errors import UserError

# Each row names one module: ours, the authors' in train form, the authors'
# in deploy form. Both directions read this table and nothing else.
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


def _rename(state_dict: dict[str, Tensor],
            names: dict[str, str]) -> dict[str, Tensor]:
    """Rename the modules of a state dict's entries, in the same order."""
    renamed, unknown = OrderedDict(), []
    for key, value in state_dict.items():
        module, _, entry = key.rpartition('.')
        stage = re.search(r'stages\.(\d+)\.', module)
        if stage:
            module = module.replace(stage[0], 'stages.{}.', 1)
        if module in names:
            name = names[module]
            name = name.format(stage[1]) if stage else name
            renamed[f'{name}.{entry}'] = value
        else:
            unknown.append(key)
    if unknown:
        raise UserError(f'these are not the entries of a VanillaNet: '
                        f'{_some(unknown)}')
    return renamed


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(map(str, names[:3])) + more


def from_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the entries of the authors' state dict our names.

    Args:
        state_dict (dict): Theirs, in train or deploy form, with or without
            the prefix ``module.``.

    Returns:
        dict: Ours, for an ``ImageClassifier``. In train form it has lambda
        too, which is 1: their network is trained to its end, and their format
        has no place for it.

    Raises:
        UserError: If it has other entries, or lacks some.
    """
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {k[len('module.'):]: v for k, v in state_dict.items()}
    form = 2 if 'stem.0.weight' in state_dict else 1
    names = {row[form]: row[0] for row in MODULES if row[form]}
    ours = _rename(state_dict, names)
    for key in list(ours):
        if key.endswith('.conv1.weight'):
            lam = key.replace('.conv1.weight', '.act.lam')
            ours[lam] = torch.tensor(1.0, dtype=torch.float64)
    describe(ours)
    return ours


def to_authors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the entries of our state dict the authors' names.

    Args:
        state_dict (dict): Ours, of an ``ImageClassifier``, in train or deploy
            form. The authors' format has no fine-tune form.

    Returns:
        dict: Theirs, in the same form.

    Raises:
        UserError: If it has other entries or lacks some, or if lambda is not
            1, which their format cannot tell.
    """
    describe(state_dict)
    if 'backbone.stem.conv.conv.weight' in state_dict:
        raise UserError("the state dict is in fine-tune form, which the "
                        "authors' format does not have: merge it to deploy "
                        'form first')
    tensors = OrderedDict()
    for key, value in state_dict.items():
        if not key.endswith('.act.lam'):
            tensors[key] = value
        elif value != 1:
            raise UserError(f"{key} is {float(value):g}, and the authors' "
                            'format can only tell a network whose lambda is 1')
    form = 2 if 'backbone.stem.conv.weight' in state_dict else 1
    names = {row[0]: row[form] for row in MODULES if row[form]}
    return _rename(tensors, names)


def describe(state_dict: dict[str, Tensor]) -> dict:
    """Read off a state dict of ours what network it is of.

    The strides are not in the tensors. A stage has stride 2 where the width
    grows and 1 where it does not, which holds for all published variants.
    Adaptive pooling leaves no trace at all: '13-x1.5' may be '13-x1.5-ada'.

    Args:
        state_dict (dict): Of an ``ImageClassifier``, in any of the three
            forms.

    Returns:
        dict: Config of the ``ImageClassifier``. ``arch`` is the name of the
        published variant, or a dict where it is none.

    Raises:
        UserError: If it is not the state dict of a VanillaNet, entry by entry
            and shape by shape; names the first few that are not.
    """
    # Of a stage's convolution: its first and its last layer, in each form.
    form = dict(deploy=False)
    first, last = 'conv1.weight', 'conv2.weight'
    if 'backbone.stem.conv.weight' in state_dict:
        form, first, last = dict(deploy=True), 'weight', 'weight'
    elif 'backbone.stem.conv.conv.weight' in state_dict:
        form = dict(deep_training=False)
        first = last = 'conv.weight'
    try:
        dims = [state_dict[f'backbone.stem.conv.{last}'].shape[0]]
        while f'backbone.stages.{len(dims) - 1}.conv.{last}' in state_dict:
            conv = f'backbone.stages.{len(dims) - 1}.conv.{last}'
            dims.append(state_dict[conv].shape[0])
        series = state_dict['backbone.stem.act.conv.weight'].shape[-1]
        in_channels = state_dict[f'backbone.stem.conv.{first}'].shape[1]
        last = 'conv2.weight' if last == 'conv2.weight' else 'weight'
        num_classes = state_dict[f'head.classifier.{last}'].shape[0]
    except KeyError as e:
        raise UserError(f'the entry {e} of a VanillaNet is not there, but '
                        f'{_some(list(state_dict))}') from e
    strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
    arch = dict(dims=dims, strides=strides)
    for name, setting in VanillaNet.arch_settings.items():
        if list(setting['dims']) == dims:
            arch = name
            break

    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='VanillaNet',
            arch=arch,
            in_channels=in_channels,
            act_num=series // 2,
            **form),
        head=dict(
            type='VanillaNetHead',
            num_classes=num_classes,
            in_channels=dims[-1],
            **form))
    with torch.device('meta'):
        wanted = ImageClassifier(model['backbone'],
                                 head=model['head']).state_dict()
    wrong = [
        key for key in {**wanted, **state_dict}
        if key not in wanted or key not in state_dict
        or wanted[key].shape != state_dict[key].shape
    ]
    # A checkpoint without lambda loads as lambda 1.
    wrong = [key for key in wrong if not key.endswith('.act.lam')]
    if wrong:
        raise UserError('these entries do not make a VanillaNet, being '
                        'missing, too many or of another shape: '
                        f'{_some(wrong)}')
    return model
