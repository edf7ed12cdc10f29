# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import copy

import torch
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from . import folding


@MODELS.register_module()
class SeriesActivation(nn.Module):
    """Series activation: a weighted sum of activations in a window.

    ``A_s(x)[h, w, c] = sum_{i, j in -n..n} a[i, j, c] A(x[i + h, j + w, c]
    + b[c])`` (VanillaNet, arXiv 2305.12972, equation 6), computed as
    ``act`` (A) -> ``conv`` (depthwise, (2n + 1) x (2n + 1)) -> ``norm``. In
    deploy form the norm is folded: ``conv`` has a bias and ``norm`` is None.
    A state dict of the train form is merged while it loads into the deploy
    form; the reverse raises RuntimeError.

    Args:
        num_channels (int): Channels of the input.
        act_num (int): n; the window has 2n + 1 positions of the feature map
            in height and width. Defaults to 3.
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        norm_cfg (dict): Config of the batch norm. Defaults to
            ``dict(type='BN', eps=1e-6)``.
        inplace (bool): Has no effect: the input, which a hook may have kept,
            is never overwritten. Defaults to False.
        deploy (bool): Whether to build the deploy form. Defaults to False.

    Raises:
        ValueError: If ``num_channels`` is missing, ``act_num`` is negative,
            or ``norm_cfg`` is not a batch norm with running statistics.
    """

    def __init__(self, num_channels: int | None = None, act_num: int = 3,
                 act_cfg: dict = dict(type='ReLU'),
                 norm_cfg: dict = dict(type='BN', eps=1e-6),
                 inplace: bool = False, deploy: bool = False) -> None:
        super().__init__()
        if num_channels is None:
            raise ValueError(
                'SeriesActivation needs num_channels, which a network does '
                'not give to the layer of its act_cfg: wrap the config of the '
                "network as dict(type='WithDeepTraining', model=..., "
                "acts='*'), which finds the channels")
        if act_num < 0:
            raise ValueError(f'act_num must not be negative, got {act_num}')
        if norm_cfg is None:
            raise ValueError('norm_cfg must be a batch norm, but got None')
        self.num_channels = num_channels
        self.act_num = act_num
        self.norm_cfg = norm_cfg
        self.act = folding.keep_input(build_activation_layer(act_cfg))
        self.conv = nn.Conv2d(
            num_channels, num_channels, 2 * act_num + 1, padding=act_num,
            groups=num_channels, bias=deploy)
        self.started = False  # as another activation
        norm = folding.build_batch_norm(norm_cfg, num_channels)
        self.norm = None if deploy else norm
        # The paper's initialization.
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        if deploy:
            nn.init.zeros_(self.conv.bias)

    @property
    def deploy(self) -> bool:
        """bool: Whether it is in deploy form."""
        return self.norm is None

    @torch.no_grad()
    def start_as(self, act: nn.Module) -> None:
        """Use an activation as A and give, in eval mode, its outputs.

        The weight becomes 1 in the middle of the window and 0 elsewhere.
        """
        if act is not self.act:
            self.act = folding.keep_input(copy.deepcopy(act))
        self.started = True
        if self.conv.bias is not None:
            self.conv.bias.zero_()
        nn.init.dirac_(self.conv.weight, self.num_channels)
        if self.norm is not None:
            folding.reset_to_identity(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, H, W) -> the same shape."""
        x = self.conv(self.act(x))
        return x if self.norm is None else self.norm(x)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if not self.deploy:
            folding.refuse_later_form(
                state_dict, prefix, 'conv.bias', 'deploy')
        elif prefix + 'norm.running_mean' in state_dict:
            with torch.device('meta'):
                earlier = SeriesActivation(
                    self.num_channels, self.act_num, norm_cfg=self.norm_cfg)
            folding.merge_entries(state_dict, prefix, earlier)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def switch_to_deploy(self) -> None:
        """Fold the norm, in place; a second call does nothing."""
        if self.deploy:
            return
        trainable = self.conv.weight.requires_grad
        weight, bias = folding.fold_batch_norm(self.conv, self.norm)
        self.conv.weight = nn.Parameter(weight, trainable)
        self.conv.bias = nn.Parameter(bias, trainable)
        self.norm = None
