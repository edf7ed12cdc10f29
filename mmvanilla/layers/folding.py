# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The arithmetic of merging, in float64: tensors, norms, state dicts."""
from contextlib import contextmanager

import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..utils.errors import WeightsError

CONV_ARGUMENTS = ('in_channels', 'out_channels', 'kernel_size', 'stride',
                  'padding', 'dilation', 'groups', 'padding_mode')
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
               nn.SyncBatchNorm)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module | None
                    ) -> tuple[Tensor, Tensor | None]:
    """Fold a batch norm into the convolution before it, if there is a norm."""
    # mmcv's fuse_conv_bn leaves an Identity of a norm.
    if norm is None or isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    folded, shift = fuse_conv_bn_weights(
        _exact(conv.weight), _exact(conv.bias), _exact(norm.running_mean),
        _exact(norm.running_var), norm.eps, _exact(norm.weight),
        _exact(norm.bias))
    return _as(folded.detach(), conv.weight), shift.detach().to(conv.weight)


def merge_convs(weight1: Tensor, bias1: Tensor | None, weight2: Tensor,
                bias2: Tensor | None, groups: int = 1) -> tuple[Tensor,
                Tensor | None]:
    """Merge a convolution and the 1x1 convolution after it into one.

    With ``W1`` the first weight, (mid, in / groups, kh, kw), and ``W2`` the
    second, (out, mid / groups, 1, 1), this is
    ``W[o, i, k, l] = sum_m W2[o, m] W1[m, i, k, l]`` and
    ``b = W2 b1 + b2`` (VanillaNet, arXiv 2305.12972, equations 2 to 4),
    group by group. Without a bias of either there is none.
    """
    first = _exact(weight1).reshape(groups, -1, weight1[0].numel())
    second = _exact(weight2).reshape(groups, -1, first.shape[1])
    weight = torch.bmm(second, first).reshape(-1, *weight1.shape[1:])

    bias = _exact(bias2)
    if bias1 is not None:
        through = torch.bmm(second, _exact(bias1).reshape(groups, -1, 1))
        bias = through.reshape(-1) + (0 if bias is None else bias)
    return _as(weight, weight1), None if bias is None else bias.to(weight1)


def _exact(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    tensor = tensor.detach()
    try:
        return tensor.double()
    except TypeError:  # a device that has no float64, such as MPS
        return tensor.cpu().double()


def _as(tensor: Tensor, weight: Tensor) -> Tensor:
    """Cast to the dtype, device and memory format of a weight."""
    out = weight.new_empty(tensor.shape)
    if any(weight.is_contiguous(memory_format=x)
           for x in (torch.contiguous_format, torch.channels_last)):
        # A 1x1 weight is both, and its strides tell which.
        out = weight.new_empty_strided(
            tensor.shape, (weight[0].numel(), *weight.stride()[1:]))
    return out.copy_(tensor)


def keep_input(act: nn.Module) -> nn.Module:
    """Let an activation leave its input as it is: a hook may have kept it."""
    for module in act.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False
    return act


def build_batch_norm(norm_cfg: dict | None,
                     channels: int) -> nn.Module | None:
    """Build a batch norm that folds; None for None, else ValueError."""
    if norm_cfg is None:
        return None
    _, norm = build_norm_layer(norm_cfg, channels)
    if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
        raise ValueError(
            'norm_cfg must be a batch norm with running statistics, since '
            f'only that folds into a convolution, but got {norm_cfg}')
    return norm


@torch.no_grad()
def reset_to_identity(norm: nn.Module) -> None:
    """Set a batch norm so that in eval mode its output is its input."""
    norm.reset_parameters()
    norm.running_var.fill_(1 - norm.eps)


@contextmanager
def keep_running_stats(stage: nn.Module):
    """Recompute a stage without a second update of running statistics."""
    kept = [(m, m.momentum, m.num_batches_tracked.clone())
            for m in stage.modules() if isinstance(m, BATCH_NORMS)]
    for norm, *_ in kept:
        # Not track_running_stats = False: torch checks that the forward pass
        # and its recomputation save the same tensors, statistics included.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def merge_entries(state_dict: dict, prefix: str, earlier: nn.Module,
                  switch: str = 'switch_to_deploy') -> None:
    """Replace the entries of an earlier form by those after its switch."""
    entries = {
        key: state_dict[prefix + key]
        for key in earlier.state_dict() if prefix + key in state_dict
    }
    try:
        earlier.load_state_dict(entries, assign=True)
    except RuntimeError:  # torch reports them
        return
    lam = getattr(earlier, 'lam', 1)
    if lam != 1:
        raise WeightsError(
            f'cannot load "{prefix[:-1]}", which is in train form, into a '
            f'merged convolution: its lambda is {lam!r}, not 1')
    getattr(earlier, switch)()
    for key in entries:
        del state_dict[prefix + key]
    state_dict.update(earlier.state_dict(prefix=prefix))


def merge_pair(state_dict: dict, prefix: str, conv: nn.Module, switch: str,
               **conv_cfg) -> None:
    """:func:`merge_entries` of a ``DeepTrainingConv2d``."""
    is_pair = prefix + 'conv1.weight' in state_dict
    first = state_dict.get(prefix + ('conv.weight', 'conv1.weight')[is_pair])
    # A layer in fine-tune form loads its own entries as they are.
    if (first is None or first.dim() != 4
            or not is_pair and switch == 'switch_to_finetune'):
        return
    arguments = {name: getattr(conv, name) for name in CONV_ARGUMENTS}
    last = state_dict.get(prefix + 'conv2.weight', first)
    if conv.groups == 1:
        arguments['out_channels'] = len(last)  # which torch compares
    with torch.device('meta'):
        earlier = MODELS.build(dict(
            arguments, bias=prefix + 'conv1.bias' in state_dict,
            mid_channels=len(first), deep_training=is_pair,
            type='DeepTrainingConv2d', **conv_cfg))
    merge_entries(state_dict, prefix, earlier, switch)


def refuse_later_form(state_dict: dict, prefix: str, entry: str,
                      form: str) -> None:
    """Raise RuntimeError if there is an entry that only a later form has."""
    if prefix + entry in state_dict:
        argument = 'deploy=True' if form == 'deploy' else 'deep_training=False'
        raise WeightsError(
            f'the state dict holds "{prefix[:-1]}" in {form} form, and the '
            'model is in an earlier one, to which it cannot be converted '
            f'back: build the model with {argument}')


def start_pair(pair: nn.Module, state_dict: dict, prefix: str = '') -> None:
    """Start a train form as a state dict's plain convolution, if it fits."""
    weight = state_dict.get(prefix + 'weight')
    if (weight is None or weight.shape != pair.conv1.weight.shape
            or pair.conv1.out_channels != pair.conv2.out_channels):
        return
    with torch.no_grad():
        pair.conv1.weight.copy_(state_dict.pop(prefix + 'weight'))
        nn.init.dirac_(pair.conv2.weight, pair.groups)
        pair.act.lam = 1
        for norm in filter(None, (pair.norm1, pair.norm2)):
            reset_to_identity(norm)
        biases = [x.bias for x in (pair.conv1, pair.norm1, pair.conv2)
                  if x is not None and x.bias is not None]
        for bias in biases:
            bias.zero_()
        if biases and prefix + 'bias' in state_dict:
            biases[0].copy_(state_dict.pop(prefix + 'bias'))
    for key, value in pair.state_dict(prefix=prefix).items():
        state_dict.setdefault(key, value)
