# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from functools import partial

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .batch_norm import build_batch_norm, fold_batch_norm, reset_to_identity
from .deep_training_activation import DeepTrainingActivation
from .folding import merge_convs
from .loading import (
    merge_deep_training,
    merge_when_loading,
    refuse_later_form,
)

CONV_ARGUMENTS = ('in_channels', 'out_channels', 'kernel_size', 'stride',
                  'padding', 'dilation', 'groups', 'padding_mode')


@MODELS.register_module()
class DeepTrainingConv2d(nn.Module):
    """A convolution that is trained as two and deployed as one.

    From VanillaNet, arXiv 2305.12972, section 3.1. Its forms are:

    - train: ``conv1`` (kernel_size, in -> mid), ``norm1``, ``act``
      (:class:`DeepTrainingActivation`), ``conv2`` (1x1, mid -> out) and, with
      ``post_norm``, ``norm2``;
    - fine-tune: ``conv``, which is conv1, norm1 and conv2 merged, and
      ``norm``, which is norm2. Without ``post_norm`` it is the deploy form;
    - deploy: the object becomes an ``nn.Conv2d``, of exactly that class.

    It is a registered convolution layer: ``conv_cfg=dict(
    type='DeepTrainingConv2d')`` adds deep training to any OpenMMLab network.

    A state dict of an earlier form with lambda 1 is merged while it loads;
    with another lambda, or of a later form, loading raises RuntimeError.
    ``weight`` and ``bias`` of a plain convolution load into the train form if
    ``post_norm`` is False and ``mid_channels`` is ``out_channels``: conv2 is
    then the identity, lambda is 1, and the outputs in eval mode are those of
    the plain convolution.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int | tuple[int]): Of the first convolution and of the
            merged one, as the following three and ``padding_mode`` are.
        stride (int | tuple[int]): As in ``nn.Conv2d``. Defaults to 1.
        padding (int | tuple[int] | str): As in ``nn.Conv2d``. Defaults to 0.
        dilation (int | tuple[int]): As in ``nn.Conv2d``. Defaults to 1.
        groups (int): Groups of both convolutions and of the merged one.
            Defaults to 1.
        bias (bool): Whether the two convolutions have biases. If not, the
            merged one still has a bias where a norm was folded into it.
            Defaults to True.
        padding_mode (str): As in ``nn.Conv2d``. Defaults to 'zeros'.
        mid_channels (int, optional): Channels between the two convolutions.
            Defaults to None, which means ``out_channels``.
        norm_cfg (dict, optional): Config of the norms, which must be batch
            norms, since no others can be folded. None builds no norms.
            Defaults to ``dict(type='BN', eps=1e-6)``.
        act_cfg (dict): Config of the activation A between the convolutions.
            Defaults to ``dict(type='ReLU')``.
        post_norm (bool): Whether a norm follows the second convolution.
            Defaults to False, since networks with a ``conv_cfg`` have a norm
            of their own there.
        deep_training (bool): Whether to build the train form; False builds
            the fine-tune form. Defaults to True.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Raises:
        ValueError: If ``norm_cfg`` is not a batch norm with running
            statistics, or ``groups`` does not divide the channels.

    Example:
        >>> conv = DeepTrainingConv2d(3, 8, 4, stride=4)
        >>> x = torch.rand(1, 3, 32, 32)
        >>> before = conv.eval()(x)  # (1, 8, 8, 8)
        >>> conv.switch_to_deploy()
        >>> type(conv)
        <class 'torch.nn.modules.conv.Conv2d'>
        >>> torch.testing.assert_close(conv(x), before)
    """

    # Attributes of nn.Conv2d that networks and mmcv's ConvModule read.
    transposed = False
    output_padding = (0, 0)

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
                 deep_training: bool = True,
                 deploy: bool = False) -> None:
        super().__init__()
        merged = partial(nn.Conv2d, in_channels, out_channels, kernel_size,
                         stride, padding, dilation, groups, bias
                         or norm_cfg is not None, padding_mode)
        norm = build_batch_norm(norm_cfg, out_channels)
        post_norm = post_norm and norm is not None
        self.eps = None if norm is None else norm.eps
        if deploy or not (deep_training or post_norm):
            self._become(merged(), self.eps if post_norm else None)
            return

        for name, value in vars(merged(device='meta')).items():
            if name in CONV_ARGUMENTS:
                setattr(self, name, value)
        self.deep_training = deep_training
        if not deep_training:
            self.conv = merged()
            self.norm = norm
            return
        mid_channels = mid_channels or out_channels
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel_size, stride,
                               padding, dilation, groups, bias, padding_mode)
        self.norm1 = build_batch_norm(norm_cfg, mid_channels)
        # The backward pass of a norm or a convolution does not use its
        # output, so the activation may overwrite it.
        self.act = DeepTrainingActivation(act_cfg, inplace=True)
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
        if self.norm2 is not None:
            x = self.norm2(x)
        return x

    @property
    def lam(self) -> float:
        """float: Lambda of the activation; 1 in fine-tune form."""
        return self.act.lam if self.deep_training else 1.0

    def switch_to_finetune(self) -> None:
        """Merge conv1, norm1 and conv2, in place; a second call does nothing.

        Without ``post_norm`` this is :meth:`switch_to_deploy`.

        Raises:
            RuntimeError: If lambda is not 1: the activation between the
                convolutions is then not linear, and they cannot be merged.
        """
        if not self.deep_training:
            return
        if self.norm2 is None:
            self.switch_to_deploy()
            return
        self.conv, self.norm = self._merge_pair(), self.norm2
        for name in ('conv1', 'norm1', 'act', 'conv2', 'norm2'):
            delattr(self, name)
        self.deep_training = False

    def switch_to_deploy(self) -> None:
        """Become one ``nn.Conv2d``, in place.

        Raises:
            RuntimeError: If lambda is not 1.
        """
        if self.deep_training:
            conv, norm = self._merge_pair(), self.norm2
        else:
            conv, norm = self.conv, self.norm
        weight, bias = fold_batch_norm(conv.weight, conv.bias, norm)
        self._become(
            self._convolution(weight, bias, conv.weight.requires_grad),
            None if norm is None else self.eps)

    def _merge_pair(self) -> nn.Conv2d:
        if self.lam != 1:
            raise RuntimeError(
                f'DeepTrainingConv2d({self.in_channels}, {self.out_channels}, '
                f'kernel_size={self.kernel_size}) cannot be merged: its '
                f'lambda is {self.lam!r}, and only at 1 is it linear')
        weight, bias = fold_batch_norm(self.conv1.weight, self.conv1.bias,
                                       self.norm1)
        weight, bias = merge_convs(weight, bias, self.conv2.weight,
                                   self.conv2.bias, self.groups)
        return self._convolution(weight, bias, self.conv1.weight.requires_grad)

    def _convolution(self, weight: Tensor, bias: Tensor | None,
                     trainable: bool) -> nn.Conv2d:
        conv = nn.Conv2d(
            **{name: getattr(self, name) for name in CONV_ARGUMENTS},
            bias=False,
            device='meta')
        conv.weight = nn.Parameter(weight, trainable)
        if bias is not None:
            conv.bias = nn.Parameter(bias, trainable)
        return conv.train(self.training)

    def _become(self, conv: nn.Conv2d, norm2_eps: float | None) -> None:
        """Turn this object into ``conv``, as torch's lazy modules do.

        Every reference to it in the network stays valid. Hooks are kept, and
        one is added that merges state dicts of earlier forms.
        """
        merge = partial(
            merge_when_loading,
            eps1=self.eps,
            eps2=norm2_eps,
            groups=conv.groups)
        hooks = {k: v for k, v in vars(self).items() if 'hook' in k}
        object.__setattr__(self, '__dict__', {**vars(conv), **hooks})
        object.__setattr__(self, '__class__', nn.Conv2d)
        self.register_load_state_dict_pre_hook(merge)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if not self.deep_training:
            refuse_later_form(state_dict, prefix, 'weight', 'deploy',
                              'fine-tune')
            merge_deep_training(state_dict, prefix, self.eps,
                                self.eps, self.groups, fold_last=False)
        else:
            refuse_later_form(state_dict, prefix, 'conv.weight', 'fine-tune',
                              'train')
            if self.norm2 is not None:
                refuse_later_form(state_dict, prefix, 'weight', 'deploy',
                                  'train')
            self._expand(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _expand(self, state_dict: dict, prefix: str) -> bool:
        """Replace a plain convolution's entries by those of the train form.

        Returns:
            bool: Whether there were such entries and they fit.
        """
        weight = state_dict.get(prefix + 'weight')
        if (weight is None or weight.shape != self.conv1.weight.shape
                or self.conv1.out_channels != self.conv2.out_channels):
            return False
        with torch.no_grad():
            nn.init.dirac_(self.conv2.weight, self.groups)
            for conv in (self.conv1, self.conv2):
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
            for norm in (self.norm1, self.norm2):
                if norm is not None:
                    reset_to_identity(norm)
        entries = self.state_dict()
        del entries['act.lam']  # without it lambda is 1, as it must be here
        entries['conv1.weight'] = state_dict.pop(prefix + 'weight')
        for name in ('conv1.bias', 'norm1.bias'):
            # If the layer has neither, torch reports the bias as unexpected.
            if name in entries and prefix + 'bias' in state_dict:
                entries[name] = state_dict.pop(prefix + 'bias')
        for name, value in entries.items():
            state_dict.setdefault(prefix + name, value.clone())
        return True


def start_as(layer: nn.Module, conv: nn.Conv2d) -> None:
    """Give a layer, in any form, the weights of a plain convolution.

    Its outputs in eval mode are then those of the convolution, unless
    ``mid_channels`` is not ``out_channels``: then its weights stay random.
    """
    entries = conv.state_dict()
    if not isinstance(layer, DeepTrainingConv2d):
        if layer.bias is not None:
            entries.setdefault('bias', torch.zeros_like(layer.bias))
        layer.load_state_dict(entries)
    elif not layer.deep_training:
        start_as(layer.conv, conv)
        reset_to_identity(layer.norm)
    elif layer._expand(entries, ''):
        layer.load_state_dict(entries)
