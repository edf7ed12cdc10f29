# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .conv import Conv2d
from .folding import fold_norm, merge_convs


@MODELS.register_module()
class DeepTrainingActivation(nn.Module):
    """The activation that fades away while the network trains.

    ``A'(x) = (1 - lam) A(x) + lam x`` (VanillaNet, arXiv 2305.12972,
    equation 1). At ``lam = 0`` it is A; at ``lam = 1`` it is the identity,
    and the convolutions on either side of it merge into one.

    ``lam`` is a Python float and not a buffer: what averages, casts or
    broadcasts buffers (EMA, ``half()``, DDP) must not touch it. It is an
    entry of the state dict all the same, a float64 scalar, so that a
    checkpoint knows how far its deep training got. A state dict without that
    entry loads as ``lam = 1``, which is what the network is without a
    schedule.

    Args:
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        inplace (bool): Whether to overwrite the input, where A allows it
            (ReLU). Defaults to False.
    """

    def __init__(self,
                 act_cfg: dict = dict(type='ReLU'),
                 inplace: bool = False) -> None:
        super().__init__()
        # A must leave x as it is: x is needed for the second term.
        cfg = {k: v for k, v in act_cfg.items() if k != 'inplace'}
        self.act = build_activation_layer(cfg)
        # For ReLU, A' is leaky_relu with slope lam: one pass over memory.
        self.is_relu = type(self.act) is nn.ReLU
        self.inplace = inplace
        self._lam = 1.0

    @property
    def lam(self) -> float:
        """float: The share of the identity, from 0 to 1. Defaults to 1.

        Setting it raises ``ValueError`` outside of that range.
        """
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        value = float(value)
        if not 0 <= value <= 1:
            raise ValueError(f'lambda must be from 0 to 1, but got {value}')
        self._lam = value

    def forward(self, x: Tensor) -> Tensor:
        """Apply A'. Takes and returns a tensor of any shape."""
        if self.is_relu:
            return F.leaky_relu(x, self._lam, self.inplace)
        return torch.lerp(self.act(x), x, self._lam)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + 'lam'] = torch.tensor(
            self._lam, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        key = prefix + 'lam'
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        try:
            self.lam = state_dict.get(key, 1.0)
        except (ValueError, TypeError, RuntimeError) as e:
            error_msgs.append(f'cannot load "{key}": {e}')

    def extra_repr(self) -> str:
        """Show lambda where the module is printed."""
        return f'lam={self._lam:g}, inplace={self.inplace}'


@MODELS.register_module()
class DeepTrainingConv2d(Conv2d):
    """A convolution that trains as two and ships as one.

    Train form: conv (kernel_size, in -> mid) -> norm ->
    :class:`DeepTrainingActivation` -> conv (1x1, mid -> out) [-> norm]
    (VanillaNet, arXiv 2305.12972, section 3.1). Deploy form: one convolution
    whose ``weight`` and ``bias`` lie on this module, as on any
    ``nn.Conv2d``; in train form these two are None.

    It is a registered convolution layer: ``conv_cfg=dict(
    type='DeepTrainingConv2d')`` gives deep training to any OpenMMLab network.

    Weights of a plain convolution, ``weight`` and ``bias``, load into the
    train form as well, where ``mid_channels`` is ``out_channels``: lambda is
    then 1 and the answers in eval mode are those of that convolution. So
    published weights of a network are where its deep training starts.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int | tuple[int]): As in ``nn.Conv2d``, like ``stride``,
            ``padding``, ``dilation`` and ``padding_mode``, all of which
            belong to the first convolution and to the merged one.
        groups (int): Groups of both convolutions, hence of the merged one.
            Defaults to 1.
        bias (bool): Whether the two convolutions have biases. Without them
            the merged one still has a bias where a norm was folded into it.
            Defaults to True.
        mid_channels (int, optional): Channels between the two. Defaults to
            None, that is ``out_channels``.
        norm_cfg (dict, optional): Config of the norms; a batch norm, since no
            other can be folded. None leaves them out. Defaults to
            ``dict(type='BN', eps=1e-6)``.
        act_cfg (dict): Config of the activation that fades. Defaults to
            ``dict(type='ReLU')``.
        post_norm (bool): Whether a norm follows the second convolution.
            Defaults to False: as a ``conv_cfg``, the network around it brings
            its own.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Raises:
        ValueError: If ``norm_cfg`` is not a batch norm, or ``groups`` does
            not divide the channels.

    Example:
        >>> conv = DeepTrainingConv2d(3, 8, 4, stride=4)
        >>> x = torch.rand(1, 3, 32, 32)
        >>> before = conv.eval()(x)  # (1, 8, 8, 8)
        >>> conv.switch_to_deploy()
        >>> torch.testing.assert_close(conv(x), before)
    """

    # What TorchScript needs to know to see the deploy form alone.
    __constants__ = Conv2d.__constants__ + ['deploy']
    __jit_unused_properties__ = ['lam']

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size,
                 stride=1,
                 padding=0,
                 dilation=1,
                 groups: int = 1,
                 bias: bool = True,
                 padding_mode: str = 'zeros',
                 mid_channels: int | None = None,
                 norm_cfg: dict | None = dict(type='BN', eps=1e-6),
                 act_cfg: dict = dict(type='ReLU'),
                 post_norm: bool = False,
                 deploy: bool = False) -> None:
        has_bias = bias or norm_cfg is not None
        # Only the deploy form has this weight; elsewhere it costs nothing.
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            has_bias,
            padding_mode,
            device=None if deploy else 'meta')
        self.deploy = deploy
        if deploy:
            return

        self.register_parameter('weight', None)
        self.register_parameter('bias', None)
        mid_channels = mid_channels or out_channels
        self.conv1 = Conv2d(in_channels, mid_channels, kernel_size, stride,
                            padding, dilation, groups, bias, padding_mode)
        self.norm1 = build_batch_norm(norm_cfg, mid_channels)
        # Neither a norm nor a convolution needs its output to go backward,
        # so the activation may take its place in memory.
        self.act = DeepTrainingActivation(act_cfg, inplace=True)
        self.conv2 = Conv2d(
            mid_channels, out_channels, 1, groups=groups, bias=bias)
        self.norm2 = build_batch_norm(norm_cfg if post_norm else None,
                                       out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        if self.deploy:
            return self.convolve(x)
        x = self.conv1(x)
        if self.norm1 is not None:
            x = self.norm1(x)
        x = self.conv2(self.act(x))
        if self.norm2 is not None:
            x = self.norm2(x)
        return x

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if not self.deploy:
            self._expand_plain_weights(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _expand_plain_weights(self, state_dict: dict, prefix: str) -> None:
        """Turn a plain convolution's entries into those of the pair.

        The first convolution takes them, the second starts as the identity
        and the norms let pass what they get.
        """
        weight = state_dict.get(prefix + 'weight')
        if (weight is None or weight.shape != self.conv1.weight.shape
                or self.conv1.out_channels != self.conv2.out_channels):
            return
        with torch.no_grad():
            nn.init.dirac_(self.conv2.weight, self.groups)
            for conv in (self.conv1, self.conv2):
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
            for norm in (self.norm1, self.norm2):
                if norm is not None:
                    pass_through(norm)
        entries = self.state_dict()
        del entries['act.lam']  # without it lambda is 1, as it must be here
        entries['conv1.weight'] = state_dict.pop(prefix + 'weight')
        for name in ('conv1.bias', 'norm1.bias'):
            # Where neither is there, the bias is reported as unexpected.
            if name in entries and prefix + 'bias' in state_dict:
                entries[name] = state_dict.pop(prefix + 'bias')
        for name, value in entries.items():
            state_dict.setdefault(prefix + name, value.clone())

    @property
    def lam(self) -> float:
        """float: Lambda of the activation; 1 in deploy form."""
        return 1.0 if self.deploy else self.act.lam

    def switch_to_deploy(self) -> None:
        """Merge into one convolution, in place; a second call does nothing.

        Raises:
            RuntimeError: If lambda is not 1: the two convolutions then have a
                non-linearity between them and no single one equals them.
        """
        if self.deploy:
            return
        if self.lam != 1:
            raise RuntimeError(
                f'DeepTrainingConv2d({self.in_channels}, {self.out_channels}, '
                f'kernel_size={self.kernel_size}) cannot be merged: its '
                f'lambda is {self.lam:g}, and only at 1 is it linear')
        weight, bias = self.merged()
        trainable = self.conv1.weight.requires_grad
        for name in ('conv1', 'norm1', 'act', 'conv2', 'norm2'):
            delattr(self, name)
        self.weight = nn.Parameter(weight, trainable)
        if bias is not None:
            self.bias = nn.Parameter(bias, trainable)
        self.deploy = True

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the one convolution, as at lambda 1."""
        first = fold_batch_norm(self.conv1.weight, self.conv1.bias, self.norm1)
        second = fold_batch_norm(self.conv2.weight, self.conv2.bias,
                                 self.norm2)
        return merge_convs(*first, *second, groups=self.groups)


def fold_batch_norm(weight: Tensor, bias: Tensor | None,
                    norm: _BatchNorm | None
                    ) -> tuple[Tensor, Tensor | None]:
    """Fold a batch norm module, or None, into a convolution's tensors."""
    if norm is None:
        return weight, bias
    return fold_norm(weight, bias, norm.running_mean, norm.running_var,
                     norm.eps, norm.weight, norm.bias)


def pass_through(norm: _BatchNorm) -> None:
    """Let a batch norm, in eval mode, give out what it gets."""
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        if norm.affine:
            norm.weight.fill_(1)
            norm.bias.zero_()


def build_batch_norm(norm_cfg: dict | None,
                      channels: int) -> nn.Module | None:
    """Build a norm that folds into a convolution; None without a config.

    Raises:
        ValueError: If it is another norm, or has no running statistics.
    """
    if norm_cfg is None:
        return None
    _, norm = build_norm_layer(norm_cfg, channels)
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f'norm_cfg must be a batch norm with running statistics, which '
            f'alone folds into a convolution, but got {norm_cfg}')
    return norm
