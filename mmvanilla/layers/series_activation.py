# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import functools

import torch
from mmcv.cnn import ConvModule, build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parameter import UninitializedParameter, is_lazy

from .batch_norm import build_batch_norm, fold_batch_norm, reset_to_identity
from .loading import merge_series, refuse_later_form

# Layers with as many output as input channels. The search for the layer that
# sets the channels of an activation skips them.
CHANNELS_KEPT = (nn.Identity, nn.modules.dropout._DropoutNd,
                 nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


@MODELS.register_module()
class SeriesActivation(nn.Module):
    """Series activation: a weighted sum of activations in a window.

    ``A_s(x)[h, w, c] = sum_{i, j in -n..n} a[i, j, c] A(x[i + h, j + w, c]
    + b[c])`` (VanillaNet, arXiv 2305.12972, equation 6), computed as
    ``act`` (A) -> ``conv`` (depthwise, (2n + 1) x (2n + 1)) -> ``norm``. In
    deploy form the norm is folded: ``conv`` has a bias and ``norm`` is None.
    A state dict of the train form is merged while it loads into the deploy
    form; the reverse raises RuntimeError.

    It is a registered activation layer:
    ``act_cfg=dict(type='SeriesActivation')`` gives it to any network.

    Args:
        num_channels (int, optional): Channels of the input. Defaults to
            None: they are inferred from the layer before it, when a block
            registers it, and corrected by the state dict or by the first
            input.
        act_num (int): n; the window has 2n + 1 positions of the feature map
            in height and width. Defaults to 3.
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        norm_cfg (dict): Config of the batch norm. Defaults to
            ``dict(type='BN', eps=1e-6)``.
        inplace (bool): Whether A may overwrite the input. Defaults to False.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Raises:
        ValueError: If ``act_num`` is negative, ``norm_cfg`` is not a batch
            norm with running statistics, or the layer follows a Linear.
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
        if norm_cfg is None:
            raise ValueError('norm_cfg must be a batch norm, but got None')
        self.num_channels = num_channels
        self.act_num = act_num
        act_cfg = dict(act_cfg)
        if inplace and act_cfg['type'] == 'ReLU':
            act_cfg['inplace'] = True
        self.act = build_activation_layer(act_cfg)

        channels = num_channels or 1
        self.conv = nn.Conv2d(
            channels,
            channels,
            2 * act_num + 1,
            padding=act_num,
            groups=channels,
            bias=deploy)
        norm = build_batch_norm(norm_cfg, channels)
        self.eps = norm.eps
        self.norm = None if deploy else norm
        self._is_guess = num_channels is None
        if num_channels is None:
            _watch_registrations()
            for layer in filter(None, (self.conv, self.norm)):
                _Unresolved.hide(layer)
        else:
            self.reset_parameters()

    @property
    def deploy(self) -> bool:
        """bool: Whether it is in deploy form."""
        return self.norm is None

    def reset_parameters(self) -> None:
        """Draw the weight from the paper's truncated normal, std 0.02."""
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        if self.norm is not None:
            self.norm.reset_parameters()

    def start_as(self, act: nn.Module) -> None:
        """Use an activation as A and give, in eval mode, its outputs.

        The weight becomes 1 in the middle of the window and 0 elsewhere.
        """
        self.act = act
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[..., self.act_num, self.act_num] = 1
            if self.norm is not None:
                reset_to_identity(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, H, W) -> the same shape.

        Raises:
            RuntimeError: If the input has another number of channels or of
                dimensions.
        """
        self._check_channels(x)
        x = self.conv(self.act(x))
        return x if self.norm is None else self.norm(x)

    def _check_channels(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            return  # torch.fx passes proxies, which have no shape
        if x.dim() != 4 or x.shape[1] != self.num_channels:
            if x.dim() != 4 or not self._is_guess:
                raise RuntimeError(
                    f'SeriesActivation of {self.num_channels} channels got an '
                    f'input of shape {tuple(x.shape)}: it takes (N, '
                    'num_channels, H, W), and a block that calls one '
                    'activation with several widths (a Bottleneck of ResNet) '
                    'needs mmvanilla.reparam.add_deep_training')
            self._materialize(x.shape[1])
        if self._is_guess:
            self._is_guess = False

    def _materialize(self, num_channels: int) -> None:
        """Create the parameters and buffers for a number of channels.

        The parameter objects stay the same: an optimizer may hold them.
        """
        self.num_channels = num_channels
        for layer in filter(None, (self.conv, self.norm)):
            _Unresolved.show(layer)
            for tensor in [*layer.parameters(), *layer.buffers()]:
                if is_lazy(tensor):
                    tensor.materialize(())
                if tensor is layer.weight and layer is self.conv:
                    shape = (num_channels, 1, *layer.kernel_size)
                elif tensor is getattr(layer, 'num_batches_tracked', None):
                    continue
                else:
                    shape = (num_channels, )
                tensor.data = tensor.new_empty(shape)
        conv = self.conv
        conv.in_channels = conv.out_channels = conv.groups = num_channels
        if self.norm is not None:
            self.norm.num_features = num_channels
        self.reset_parameters()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(prefix + 'conv.weight')
        if weight is not None and self._is_guess:
            if weight.shape[0] != self.num_channels:
                self._materialize(weight.shape[0])
            self._is_guess = False
        if self.deploy:
            merge_series(state_dict, prefix, self.eps)
        else:
            refuse_later_form(state_dict, prefix, 'conv.bias', 'deploy',
                              'train')
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
        trainable = self.conv.weight.requires_grad
        weight, bias = fold_batch_norm(self.conv.weight, self.conv.bias,
                                       self.norm)
        self.conv.weight = nn.Parameter(weight, trainable)
        self.conv.bias = nn.Parameter(bias, trainable)
        self.norm = None

    def extra_repr(self) -> str:
        """Show n."""
        return f'act_num={self.act_num}'


class _Unresolved(nn.Module):
    """Class of a layer while its channels are unknown.

    Initializers choose layers by class, and must not choose these.
    """

    @staticmethod
    def hide(layer: nn.Module) -> None:
        layer.becomes = type(layer)
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name,
                    UninitializedParameter(parameter.requires_grad))
        layer.__class__ = _Unresolved

    @staticmethod
    def show(layer: nn.Module) -> None:
        if isinstance(layer, _Unresolved):
            layer.__class__ = layer.becomes
            del layer.becomes


@functools.cache
def _watch_registrations() -> None:
    """Infer the channels of a series activation when a block registers it.

    DDP, the optimizer and EMA need the parameters before the first batch. An
    ``act_cfg`` does not hold the channels, and a module has no reference to
    its parent.
    """

    def infer_channels(parent, name, module):
        if isinstance(module, SeriesActivation) and (
                module.num_channels is None):
            channels = _channels_before(parent, name)
            if channels is not None:
                module._materialize(channels)

    register_module_module_registration_hook(infer_channels)


def _channels_before(parent: nn.Module, name: str) -> int | None:
    """Channels of the input of a module just registered; None if unknown.

    In mmcv's ``ConvModule`` and in ``nn.Sequential`` the layer that runs
    before it is known. In other blocks it is assumed to be the one that was
    registered last.
    """
    if isinstance(parent, ConvModule):
        before = parent.order[:parent.order.index('act')]
        return parent.out_channels if 'conv' in before else parent.in_channels
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
                'whose channels are the last dimension')
        if not isinstance(module, CHANNELS_KEPT):
            break
    channels = getattr(parent, 'out_channels', None)
    return channels if isinstance(channels, int) else None
