# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""State-dict key mapping between the authors' format and ours."""
import re
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ..models import VanillaNet, VanillaNetHead
from ..utils.errors import UserError
from ..utils.terminal import some

# Each row is one module: our name, the authors' name in train form, the
# authors' name in deploy form. Both directions of the mapping use this table.
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
            names: dict[str, str],
            keep_others: bool = False) -> dict[str, Tensor]:
    """Rename the modules of a state dict's entries, in the same order.

    ``keep_others`` keeps the keys of a detector's neck and heads.
    """
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
        elif keep_others and not key.startswith('backbone.'):
            renamed[key] = value
        else:
            unknown.append(key)
    if unknown:
        raise UserError(f'these are not the entries of a VanillaNet: '
                        f'{some(unknown)}')
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
    _check_tensors(state_dict)
    prefix = official_prefix(state_dict) or ''
    if prefix == 'module.':
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}
        prefix = ''
    form = 2 if f'{prefix}stem.0.weight' in state_dict else 1
    names = {f'{prefix}{row[form]}': row[0] for row in MODULES if row[form]}
    ours = _rename(state_dict, names, keep_others=bool(prefix))
    for key in list(ours):
        if key.endswith('.conv1.weight'):
            lam = key.replace('.conv1.weight', '.act.lam')
            ours[lam] = torch.tensor(1.0, dtype=torch.float64)
    describe_backbone(ours) if prefix else describe(ours)
    return ours


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
    _check_tensors(state_dict)
    detector = is_detector(state_dict)
    describe_backbone(state_dict) if detector else describe(state_dict)
    if 'backbone.stem.conv.conv.weight' in state_dict:
        raise UserError("the state dict is in fine-tune form, which the "
                        "authors' format does not have: merge it to deploy "
                        'form first')
    tensors = OrderedDict()
    for key, value in state_dict.items():
        if not key.endswith('.act.lam'):
            tensors[key] = value
        elif value != 1:
            raise UserError(f"{key} is {float(value):g}, but the authors' "
                            'format has no lambda: it must be 1')
    form = 2 if 'backbone.stem.conv.weight' in state_dict else 1
    prefix = 'backbone.' if detector else ''
    names = {row[0]: f'{prefix}{row[form]}' for row in MODULES if row[form]}
    return _rename(tensors, names, keep_others=detector)


def is_detector(state_dict: dict) -> bool:
    """Whether a state dict with our keys is a detector's: it has a neck."""
    return any(str(key).startswith('neck.') for key in state_dict)


def official_prefix(state_dict) -> str | None:
    """What the authors' keys begin with in a state dict; None without them.

    It is '' or 'module.' in a classifier's, 'backbone.' in a detector's.
    """
    for prefix in ('', 'module.', 'backbone.'):
        if isinstance(state_dict, dict) and (
                f'{prefix}stages.0.act.weight' in state_dict) and any(
                    f'{prefix}{stem}.weight' in state_dict
                    for stem in ('stem.0', 'stem1.0')):
            return prefix
    return None


def _check_tensors(state_dict) -> None:
    if not isinstance(state_dict, dict) or not any(
            isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError('it holds no state dict with tensors')
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f'the entry {ascii(key)[:100]} of its state dict '
                            f'is of type {type(value).__name__}')


def describe(state_dict: dict[str, Tensor]) -> dict:
    """Infer a classifier's config from a state dict with our keys.

    The tensors do not hold the strides: a stage has stride 2 where its width
    is larger than that of the stage before, as in all published variants.
    '13-x1.5' is returned for '13-x1.5-ada', whose tensors have the same
    shapes.

    Args:
        state_dict (dict): Of an ``ImageClassifier``, in any of the three
            forms.

    Returns:
        dict: Config of the ``ImageClassifier``. ``arch`` is the name of the
        published variant of these widths, or a dict.

    Raises:
        UserError: If keys are missing, unexpected or mismatched; names the
            first few.
    """
    backbone = describe_backbone(state_dict)
    form = {k: v for k, v in backbone.items()
            if k in ('deploy', 'deep_training')}
    first, last = _weights(state_dict, 'head.classifier')
    head = dict(
        num_classes=last.shape[0], in_channels=first.shape[1], **form)
    _check_entries(
        {k: v for k, v in state_dict.items() if not k.startswith('backbone.')},
        lambda: VanillaNetHead(**head), 'head.')
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        head=dict(type='VanillaNetHead', **head))


def describe_backbone(state_dict: dict[str, Tensor]) -> dict:
    """Infer a backbone's config as :func:`describe` does."""
    first, last = _weights(state_dict, 'backbone.stem.conv')
    dims = [last.shape[0]]
    while any(key.startswith(f'backbone.stages.{len(dims) - 1}.')
              for key in state_dict):
        stage = f'backbone.stages.{len(dims) - 1}.conv'
        dims.append(_weights(state_dict, stage)[1].shape[0])
    series, _ = _weights(state_dict, 'backbone.stem.act.conv')
    strides = [1 + (b > a) for a, b in zip(dims, dims[1:])]
    arch = next((name for name, setting in VanillaNet.arch_settings.items()
                 if list(setting['dims']) == dims),
                dict(dims=dims, strides=strides))
    form = dict(deploy=False)
    if 'backbone.stem.conv.weight' in state_dict:
        form = dict(deploy=True)
    elif 'backbone.stem.conv.conv.weight' in state_dict:
        form = dict(deep_training=False)
    backbone = dict(
        arch=arch,
        in_channels=first.shape[1],
        act_num=series.shape[-1] // 2,
        **form)
    _check_entries(
        {k: v for k, v in state_dict.items() if k.startswith('backbone.')},
        lambda: VanillaNet(**backbone), 'backbone.')
    return dict(type='VanillaNet', **backbone)


def _weights(state_dict: dict[str, Tensor], name: str) -> tuple:
    """The first and the last weight of a convolution in any of the forms."""
    for first, last in (('conv1', 'conv2'), ('conv', 'conv'), ('', '')):
        found = [
            state_dict.get('.'.join(filter(None, (name, conv, 'weight'))))
            for conv in (first, last)
        ]
        if all(w is not None and w.dim() == 4 for w in found):
            return tuple(found)
    raise UserError(f'{name} of a VanillaNet is missing; the keys are '
                    f'{some(list(state_dict))}')


def _check_entries(entries: dict, build: Callable, prefix: str) -> None:
    """Refuse entries whose keys or shapes are not those of a module."""
    try:
        with torch.device('meta'):
            wanted = build().state_dict()
    except (ValueError, RuntimeError) as e:
        raise UserError(f'these are not the shapes of a VanillaNet: {e}'
                        ) from e
    wanted = {f'{prefix}{key}': value for key, value in wanted.items()}
    wrong = [
        key for key in {**wanted, **entries}
        if key not in wanted or key not in entries
        or wanted[key].shape != entries[key].shape
    ]
    # A checkpoint without lambda loads as lambda 1.
    wrong = [k for k in wrong if k in entries or not k.endswith('.act.lam')]
    if wrong:
        raise UserError('these keys of a VanillaNet are missing, unexpected '
                        f'or mismatched: {some(wrong)}')
