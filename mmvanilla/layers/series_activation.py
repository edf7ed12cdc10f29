# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import functools

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parameter import UninitializedParameter

from .conv import has_few_pixels
from .deep_training import build_batch_norm, fold_batch_norm, pass_through

# Layers that a search for the channels before an activation may pass over.
CHANNELS_KEPT = (nn.Identity, nn.modules.dropout._DropoutNd,
                 nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


@MODELS.register_module()
class SeriesActivation(nn.Module):
    """Activations stacked side by side, gathering their neighbours.

    ``A_s(x)[h, w, c] = sum_{i, j in -n..n} a[i, j, c] A(x[i + h, j + w, c]
    + b[c])`` (VanillaNet, arXiv 2305.12972, equation 6), computed as
    A -> depthwise (2n + 1) x (2n + 1) convolution -> batch norm. In deploy
    form the norm is folded, and the convolution has a bias.

    It is a registered activation layer:
    ``act_cfg=dict(type='SeriesActivation')`` gives it to any network.

    Args:
        num_channels (int, optional): Channels of the input. Defaults to
            None: they are read off the block that it is put into (the layer
            before it there, or the block's ``out_channels``); where that
            tells nothing, off the first input or the state dict, whichever
            comes first.
        act_num (int): n, the reach of the series to each side, in pixels.
            Defaults to 3.
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        norm_cfg (dict): Config of the batch norm. Defaults to
            ``dict(type='BN', eps=1e-6)``.
        inplace (bool): Whether A may overwrite the input. Defaults to False.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Raises:
        ValueError: If ``act_num`` is negative, if ``norm_cfg`` is not a batch
            norm, or is not plain BN where ``num_channels`` is None.
    """

    def __init__(self,
                 num_channels: int | None = None,
                 act_num: int = 3,
                 act_cfg: dict = dict(type='ReLU'),
                 norm_cfg: dict = dict(type='BN', eps=1e-6),
                 inplace: bool = False,
                 deploy: bool = False) -> None:
        super().__init__()
        if act_num < 0:
            raise ValueError(f'act_num must not be negative, got {act_num}')
        self.num_channels = num_channels
        self.act_num = act_num
        self.deploy = deploy
        act_cfg = dict(act_cfg)
        if inplace and act_cfg['type'] == 'ReLU':
            act_cfg['inplace'] = True
        self.act = build_activation_layer(act_cfg)

        if num_channels is None:
            self.weight = UninitializedParameter()
            self.norm = None if deploy else _lazy_batch_norm(norm_cfg)
            self.bias = UninitializedParameter() if deploy else None
            _watch_registrations()
        else:
            self.weight = nn.Parameter(torch.empty(*self._shape(num_channels)))
            self.norm = (None if deploy else build_batch_norm(
                norm_cfg, num_channels))
            self.bias = (
                nn.Parameter(torch.empty(num_channels)) if deploy else None)
            self.reset_parameters()

    def _shape(self, num_channels: int) -> tuple:
        size = 2 * self.act_num + 1
        return num_channels, 1, size, size

    def reset_parameters(self) -> None:
        """Draw the weight from the paper's truncated normal, std 0.02."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def start_as(self, act: nn.Module) -> None:
        """Take the place of an activation, with its answers in eval mode.

        The series starts from its middle alone, where trained layers around
        it would lose all they learned behind random weights.
        """
        self.act = act
        with torch.no_grad():
            self.weight.zero_()
            self.weight[..., self.act_num, self.act_num] = 1
            if self.norm is not None:
                pass_through(self.norm)

    @torch.jit.unused
    def _materialize(self, num_channels: int) -> None:
        self.num_channels = num_channels
        self.weight.materialize(self._shape(num_channels))
        if self.bias is not None:
            self.bias.materialize((num_channels, ))
        if self.norm is not None:
            self.norm.initialize_parameters(torch.empty(1, num_channels, 1, 1))
        with torch.no_grad():
            self.reset_parameters()

    @torch.jit.unused
    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or torch.jit.is_tracing():
            return  # torch.fx traces with what is no tensor
        if x.dim() != 4 or x.shape[1] != self.num_channels:
            raise RuntimeError(
                f'SeriesActivation of {self.num_channels} channels got an '
                f'input of {tuple(x.shape)}: give num_channels where they '
                'were read off wrongly; an activation that a block calls with '
                'several widths (a Bottleneck of ResNet) takes '
                'mmvanilla.models.add_deep_training')

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, H, W) -> the same shape.

        Raises:
            RuntimeError: If the input has other channels.
        """
        if self.num_channels is None:
            self._materialize(x.shape[1])
        if not torch.jit.is_scripting():
            self._check(x)
        x = self.act(x)
        # Backward, in channels_last, oneDNN pads each channel of the weight to
        # 256: slow and, on a small map, larger than all else.
        reorder = False
        if not torch.jit.is_scripting():
            reorder = torch.is_grad_enabled() and has_few_pixels(x)
        if reorder:
            x = x.contiguous()
        x = F.conv2d(
            x,
            self.weight,
            self.bias,
            padding=self.act_num,
            groups=x.shape[1])
        if reorder:
            x = x.contiguous(memory_format=torch.channels_last)
        return x if self.norm is None else self.norm(x)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(prefix + 'weight')
        if self.num_channels is None and weight is not None:
            self._materialize(weight.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def switch_to_deploy(self) -> None:
        """Fold the norm, in place; a second call does nothing.

        Raises:
            RuntimeError: If the channels are not known yet.
        """
        if self.deploy:
            return
        if self.num_channels is None:
            raise RuntimeError(
                'SeriesActivation cannot be merged before its channels are '
                'known: give num_channels, load a checkpoint, or run a batch')
        weight, bias = fold_batch_norm(self.weight, None, self.norm)
        trainable = self.weight.requires_grad
        self.weight = nn.Parameter(weight, trainable)
        self.bias = nn.Parameter(bias, trainable)
        self.norm = None
        self.deploy = True

    def extra_repr(self) -> str:
        """Show the channels, unless they are unknown yet, and n."""
        channels = '?' if self.num_channels is None else self.num_channels
        return f'{channels}, act_num={self.act_num}, deploy={self.deploy}'


@functools.cache
def _watch_registrations() -> None:
    """Let a block that takes in a series activation tell it its channels.

    So the parameters are there before the first batch, for DDP, for the
    optimizer and for an average of the weights. An `act_cfg` tells none, and
    a module cannot ask: it does not know where it is.
    """

    def tell(parent, name, module):
        if isinstance(module, SeriesActivation) and (
                module.num_channels is None):
            channels = _channels_before(parent, name)
            if channels is not None:
                module._materialize(channels)

    register_module_module_registration_hook(tell)


def _channels_before(parent: nn.Module, name: str) -> int | None:
    """Channels that reach a module just registered in a block, if it shows.

    Whatever ran before it says so: the layer registered last, or, in blocks
    of other order (mmcv's ``ConvModule``), the block's own arguments.
    """
    order = getattr(parent, 'order', None)
    if order and order.index('act') < order.index('conv'):
        return parent.in_channels
    for sibling, module in reversed(parent._modules.items()):
        if sibling == name or module is None:
            continue
        while isinstance(module, nn.Sequential) and len(module):
            module = module[-1]
        for attribute in ('out_channels', 'num_features', 'num_channels'):
            channels = getattr(module, attribute, None)
            if isinstance(channels, int):
                return channels
        if isinstance(module, nn.Linear):
            raise ValueError(
                'SeriesActivation takes maps of (N, C, H, W), but in '
                f'{type(parent).__name__} it follows a Linear, "{sibling}", '
                'whose channels lie last')
        if not isinstance(module, CHANNELS_KEPT):
            break
    channels = getattr(parent, 'out_channels', None)
    return channels if isinstance(channels, int) else None


def _lazy_batch_norm(norm_cfg: dict) -> nn.Module:
    cfg = dict(norm_cfg)
    layer_type = cfg.pop('type')
    if layer_type not in ('BN', 'BN2d'):
        raise ValueError(
            'SeriesActivation without num_channels takes a plain BN, whose '
            f'channels can be inferred, but got norm_cfg={norm_cfg}')
    trainable = cfg.pop('requires_grad', True)
    norm = nn.LazyBatchNorm2d(**cfg)
    for parameter in norm.parameters():
        parameter.requires_grad = trainable
    return norm
