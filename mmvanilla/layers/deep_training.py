# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from . import folding


@MODELS.register_module()
class DeepTrainingActivation(nn.Module):
    """The activation that becomes the identity during training.

    ``A'(x) = (1 - lam) A(x) + lam x`` (VanillaNet, arXiv 2305.12972,
    equation 1). At ``lam = 1`` it is the identity, and the convolutions on
    either side of it merge into one.

    Lambda is not a buffer, which ``half()``, DDP and averages would change,
    but a float64 scalar of the state dict, which can be written in place.

    Args:
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        inplace (bool): Has no effect: the input, which a hook may have kept,
            is never overwritten. Defaults to False.
    """

    def __init__(self, act_cfg: dict = dict(type='ReLU'),
                 inplace: bool = False) -> None:
        super().__init__()
        # torch.func.functional_call puts the lambda of a state dict here.
        self.register_buffer('lam', None)
        self.act = folding.keep_input(build_activation_layer(act_cfg))
        # For ReLU, A' is leaky_relu with slope lam: one pass over memory.
        self.is_relu = type(self.act) is nn.ReLU
        # The memory of the state dict's entry, whatever the default device.
        self._entry = np.ones(())
        self._lam = 1.0  # what it holds, for compiled graphs

    @property
    def lam(self) -> float:
        """float: From 0 to 1, else ValueError. Defaults to 1."""
        self._lam = float(self._entry)
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        value = float(value)
        if not 0 <= value <= 1:
            raise ValueError(f'lambda must be from 0 to 1, but got {value}')
        self._entry[...] = self._lam = value

    def __setattr__(self, name, value):
        if name == 'lam':  # the property, not the empty buffer
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Apply A' to a tensor of any shape."""
        swapped = self._buffers['lam']
        if swapped is not None:
            return torch.lerp(self.act(x), x, swapped.to(x))
        lam = self._lam if torch.compiler.is_compiling() else self.lam
        if self.is_relu:
            # In place on a copy: the backward pass then needs the output,
            # which the next layer keeps anyway, and not x.
            return F.leaky_relu(x.clone(), lam, inplace=True)
        return torch.lerp(self.act(x), x, lam)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._lam = self.lam  # as written into an earlier state dict
        destination[prefix + 'lam'] = torch.from_numpy(self._entry)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        key = prefix + 'lam'
        if key not in state_dict:
            return
        unexpected_keys, error_msgs = args[-2:]
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        try:
            self.lam = state_dict[key]
        except (ValueError, TypeError, RuntimeError) as e:
            error_msgs.append(f'cannot load "{key}": {e}')

    def extra_repr(self) -> str:
        """Show lambda where the module is printed."""
        return f'lam={self.lam:g}'


@MODELS.register_module()
class DeepTrainingConv2d(nn.Module):
    """A convolution that is trained as two and deployed as one.

    From VanillaNet, arXiv 2305.12972, section 3.1. Its forms are:

    - train: ``conv1`` (kernel_size, in -> mid), ``norm1``, ``act``
      (:class:`DeepTrainingActivation`), ``conv2`` (1x1, mid -> out) and, with
      ``post_norm``, ``norm2``;
    - fine-tune: ``conv``, which is conv1, norm1 and conv2 merged, and
      ``norm``, which is norm2. Without ``post_norm`` it is the deploy form;
    - deploy: the object becomes a plain ``nn.Conv2d``.

    ``conv_cfg=dict(type='DeepTrainingConv2d')`` gives it to a network.

    Loading merges a state dict of an earlier form with lambda 1, except into
    the plain ``nn.Conv2d`` of a network that is not ours, and refuses one of a
    later form with RuntimeError. Without an entry of lambda it is 1. A plain
    convolution's entries load into the train form, with the same outputs, if
    ``post_norm`` is False and ``mid_channels`` is ``out_channels``.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size, stride, padding, dilation, padding_mode: Of the first
            convolution and of the merged one, as in ``nn.Conv2d``.
        groups (int): Groups of both convolutions. Defaults to 1.
        bias (bool): Whether both convolutions have biases. A merged one has
            one where a norm was folded into it, too. Defaults to True.
        mid_channels (int, optional): Channels between the convolutions.
            Defaults to None, which means ``out_channels``.
        norm_cfg (dict, optional): Config of the batch norms; None for none.
            Defaults to ``dict(type='BN', eps=1e-6)``.
        act_cfg (dict): Config of the activation between the convolutions.
            Defaults to ``dict(type='ReLU')``.
        post_norm (bool): Whether a norm follows the second convolution.
            Defaults to False: a network with a ``conv_cfg`` has its own.
        deep_training (bool): False builds the fine-tune form.
        deploy (bool): True builds the deploy form.

    Raises:
        ValueError: If ``norm_cfg`` is not a batch norm with running
            statistics, or ``groups`` does not divide the channels.
    """

    # Attributes of nn.Conv2d that networks and mmcv's ConvModule read.
    transposed, output_padding = False, (0, 0)

    def __init__(self, in_channels: int, out_channels: int, kernel_size,
                 stride=1, padding=0, dilation=1, groups: int = 1,
                 bias: bool = True, padding_mode: str = 'zeros',
                 mid_channels: int | None = None,
                 norm_cfg: dict | None = dict(type='BN', eps=1e-6),
                 act_cfg: dict = dict(type='ReLU'), post_norm: bool = False,
                 deep_training: bool = True, deploy: bool = False) -> None:
        super().__init__()
        merged = partial(nn.Conv2d, in_channels, out_channels, kernel_size,
                         stride, padding, dilation, groups, bias
                         or norm_cfg is not None, padding_mode)
        norm = folding.build_batch_norm(norm_cfg, out_channels)
        post_norm = post_norm and norm is not None
        if deploy or not (deep_training or post_norm):
            self._become(merged())
            return
        plain = merged(device='meta')
        for name in folding.CONV_ARGUMENTS:
            setattr(self, name, getattr(plain, name))
        self.conv_cfg = dict(
            norm_cfg=norm_cfg, act_cfg=act_cfg, post_norm=post_norm)
        self.deep_training = deep_training
        if not deep_training:
            self.conv, self.norm = merged(), norm
            return
        mid_channels = mid_channels or out_channels
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel_size, stride,
                               padding, dilation, groups, bias, padding_mode)
        self.norm1 = folding.build_batch_norm(norm_cfg, mid_channels)
        self.act = DeepTrainingActivation(act_cfg)
        self.conv2 = nn.Conv2d(
            mid_channels, out_channels, 1, groups=groups, bias=bias)
        self.norm2 = norm if post_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        if not self.deep_training:
            return self.norm(self.conv(x))
        x = self.conv1(x)
        if self.norm1 is not None:
            x = self.norm1(x)
        x = self.conv2(self.act(x))
        return x if self.norm2 is None else self.norm2(x)

    @property
    def lam(self) -> float:
        """float: Lambda of the activation; 1 in fine-tune form."""
        return self.act.lam if self.deep_training else 1.0

    def switch_to_finetune(self) -> None:
        """Merge conv1, norm1 and conv2, in place.

        Without ``post_norm`` this is :meth:`switch_to_deploy`.

        Raises:
            RuntimeError: If lambda is not 1.
        """
        self._merge_pair()
        if self.norm is None:
            self.switch_to_deploy()

    def switch_to_deploy(self) -> None:
        """Become one ``nn.Conv2d``, in place.

        Raises:
            RuntimeError: If lambda is not 1.
        """
        self._merge_pair()
        self._become(self._convolution(
            *folding.fold_batch_norm(self.conv, self.norm), self.conv))

    def _merge_pair(self) -> None:
        if not self.deep_training:
            return
        if self.lam != 1:
            raise RuntimeError('cannot merge a DeepTrainingConv2d whose '
                               f'lambda is {self.lam!r}, not 1')
        merged = folding.merge_convs(
            *folding.fold_batch_norm(self.conv1, self.norm1),
            self.conv2.weight, self.conv2.bias, self.groups)
        self.conv = self._convolution(*merged, self.conv1)
        self.norm = self.norm2
        for name in ('conv1', 'norm1', 'act', 'conv2', 'norm2'):
            delattr(self, name)
        self.deep_training = False

    def _convolution(self, weight: Tensor, bias: Tensor | None,
                     like: nn.Conv2d) -> nn.Conv2d:
        arguments = {x: getattr(self, x) for x in folding.CONV_ARGUMENTS}
        conv = nn.Conv2d(**arguments, bias=False, device='meta')
        conv.weight = nn.Parameter(weight, like.weight.requires_grad)
        if bias is not None:
            conv.bias = nn.Parameter(bias, like.weight.requires_grad)
        return conv.train(self.training)

    def _become(self, conv: nn.Conv2d) -> None:
        """Turn this object, to which others refer, into ``conv``."""
        hooks = {k: v for k, v in vars(self).items() if 'hook' in k}
        object.__setattr__(self, '__dict__', {**vars(conv), **hooks})
        object.__setattr__(self, '__class__', nn.Conv2d)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if not self.deep_training:
            folding.refuse_later_form(state_dict, prefix, 'weight', 'deploy')
            folding.merge_pair(state_dict, prefix, self, 'switch_to_finetune',
                               **self.conv_cfg)
        else:
            folding.refuse_later_form(
                state_dict, prefix, 'conv.weight', 'fine-tune')
            if self.norm2 is not None:
                folding.refuse_later_form(
                    state_dict, prefix, 'weight', 'deploy')
            folding.start_pair(self, state_dict, prefix)
            if prefix + 'conv1.weight' in state_dict:
                state_dict.setdefault(prefix + 'act.lam', torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)


def start_as(layer: nn.Module, conv: nn.Conv2d) -> None:
    """Give a layer, in any form, the weights of a plain convolution."""
    if not isinstance(layer, DeepTrainingConv2d):
        bias = {} if layer.bias is None else dict(
            bias=torch.zeros_like(layer.bias))
        layer.load_state_dict({**bias, **conv.state_dict()})
    elif layer.deep_training:
        folding.start_pair(layer, conv.state_dict())
    else:
        start_as(layer.conv, conv)
        folding.reset_to_identity(layer.norm)
