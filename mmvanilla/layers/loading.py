# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""State dicts of one form for layers of another.

An earlier form is merged while it loads, if its lambda is 1. A later form
does not load into an earlier one. The functions change the state dict in
place; torch and mmengine load from a copy.
"""
from torch import Tensor

from .folding import fold_norm, merge_convs


def merge_deep_training(state_dict: dict,
                        prefix: str,
                        eps1: float | None,
                        eps2: float | None,
                        groups: int,
                        fold_last: bool = True) -> None:
    """Merge a ``DeepTrainingConv2d``'s entries of an earlier form.

    Args:
        state_dict (dict): The whole state dict.
        prefix (str): The layer's name in it, with a dot.
        eps1 (float, optional): ``eps`` of norm1. None if there is no norm1.
        eps2 (float, optional): ``eps`` of norm2. None if there is no norm2.
        groups (int): Groups of the convolutions.
        fold_last (bool): Whether to fold norm2 too, which gives the deploy
            form. False keeps it as ``norm``, which gives the fine-tune form.
            Defaults to True.

    Raises:
        RuntimeError: If lambda is not 1.
    """
    norm2 = 'norm'
    if prefix + 'conv1.weight' in state_dict:
        lam = float(state_dict.get(prefix + 'act.lam', 1))
        if lam != 1:
            raise RuntimeError(
                f'cannot load "{prefix[:-1]}", which is in train form, into a '
                f'merged convolution: its lambda is {lam!r}, not 1')
        conv, norm2 = _merge_pair(state_dict, prefix, eps1, groups), 'norm2'
    elif fold_last and prefix + 'conv.weight' in state_dict:
        conv = _tensors(state_dict, prefix + 'conv.')
    else:
        return
    norm = _tensors(state_dict, prefix + norm2 + '.')
    if conv is None or not _is_norm(norm, eps2):
        return  # torch reports the missing and unexpected keys
    for name in ('conv1', 'norm1', 'act', 'conv2', 'conv', norm2):
        _drop(state_dict, f'{prefix}{name}.')
    if fold_last:
        _put(state_dict, prefix, _fold(conv, norm, eps2))
    else:
        _put(state_dict, prefix + 'conv.', (conv['weight'], conv.get('bias')))
        _put(state_dict, prefix + 'norm.', norm)


def merge_when_loading(module, state_dict: dict, prefix: str, *args,
                       **kwargs) -> None:
    """:func:`merge_deep_training` as a load_state_dict pre-hook."""
    merge_deep_training(state_dict, prefix, **kwargs)


def merge_series(state_dict: dict, prefix: str, eps: float) -> None:
    """Fold the norm in a ``SeriesActivation``'s entries, if there is one."""
    conv = _tensors(state_dict, prefix + 'conv.')
    norm = _tensors(state_dict, prefix + 'norm.')
    if norm and 'weight' in conv and _is_norm(norm, eps):
        _drop(state_dict, prefix + 'norm.')
        _put(state_dict, prefix + 'conv.', _fold(conv, norm, eps))


def refuse_later_form(state_dict: dict, prefix: str, entry: str, form: str,
                      wanted: str) -> None:
    """Refuse a state dict of a later form than the layer has.

    Args:
        state_dict (dict): The whole state dict.
        prefix (str): The layer's name in it, with a dot.
        entry (str): An entry that only the later form has.
        form (str): The later form, 'deploy' or 'fine-tune'.
        wanted (str): The form of the layer.

    Raises:
        RuntimeError: If the entry is there; names both forms and the
            argument that builds the later one.
    """
    if prefix + entry in state_dict:
        argument = {'deploy': 'deploy=True',
                    'fine-tune': 'deep_training=False'}[form]
        raise RuntimeError(
            f'the state dict holds "{prefix[:-1]}" in {form} form, but the '
            f'model is in {wanted} form, and a later form cannot be converted '
            f'back: build the model with {argument}')


def _merge_pair(state_dict: dict, prefix: str, eps: float | None,
                groups: int) -> dict | None:
    conv1 = _tensors(state_dict, prefix + 'conv1.')
    norm1 = _tensors(state_dict, prefix + 'norm1.')
    conv2 = _tensors(state_dict, prefix + 'conv2.')
    if 'weight' not in conv2 or not _is_norm(norm1, eps):
        return None
    weight, bias = merge_convs(*_fold(conv1, norm1, eps), conv2['weight'],
                               conv2.get('bias'), groups)
    return dict(weight=weight) if bias is None else dict(
        weight=weight, bias=bias)


def _tensors(state_dict: dict, prefix: str) -> dict[str, Tensor]:
    return {
        key[len(prefix):]: value
        for key, value in state_dict.items() if key.startswith(prefix)
    }


def _is_norm(norm: dict, eps: float | None) -> bool:
    """Whether entries are a batch norm's; without ``eps``, whether none."""
    return not norm if eps is None else {'running_mean', 'running_var'
                                         } <= set(norm)


def _fold(conv: dict, norm: dict,
          eps: float | None) -> tuple[Tensor, Tensor | None]:
    if eps is None:
        return conv['weight'], conv.get('bias')
    return fold_norm(conv['weight'], conv.get('bias'), norm['running_mean'],
                     norm['running_var'], eps, norm.get('weight'),
                     norm.get('bias'))


def _drop(state_dict: dict, prefix: str) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]


def _put(state_dict: dict, prefix: str, tensors) -> None:
    if isinstance(tensors, tuple):
        tensors = dict(zip(('weight', 'bias'), tensors))
    state_dict.update({
        prefix + name: tensor
        for name, tensor in tensors.items() if tensor is not None
    })
