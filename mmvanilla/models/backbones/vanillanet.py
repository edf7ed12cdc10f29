# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...layers.deep_training import DeepTrainingConv2d
from ...layers.folding import BATCH_NORMS, keep_running_stats
from ...layers.forms import switch_to_deploy, switch_to_finetune
from ...layers.loading import check_loading
from ...layers.series_activation import SeriesActivation

INIT_CFG = [dict(type='TruncNormal', layer='Conv2d', std=0.02),
            dict(type='Constant', layer='_BatchNorm', val=1)]


def _arch(dims: Sequence[int], strides: Sequence[int], width: float = 1,
          ada_pool: Sequence[int] | None = None) -> dict:
    arch = dict(dims=[int(128 * width) * d for d in dims], strides=strides)
    return arch if ada_pool is None else dict(arch, ada_pool=ada_pool)


def _deep(repeats: int, **kwargs) -> dict:
    """VanillaNet-8 to -13: ``repeats`` stages of 2048 channels."""
    return _arch([4, 4, 8] + [16] * (repeats + 1) + [32, 32],
                 [1, 2, 2] + [1] * repeats + [2, 1], **kwargs)


class VanillaStage(BaseModule):
    """A convolution, a pooling where the stage reduces, an activation."""

    def __init__(self, conv: nn.Module, act: nn.Module,
                 pool: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.pool, self.act = conv, pool, act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        x = self.conv(x)
        if self.pool is not None:
            x = self.pool(x)
        return self.act(x)


@MODELS.register_module()
class VanillaNet(BaseBackbone):
    """VanillaNet: The Power of Minimalism in Deep Learning.

    A plain stack of layers, from arXiv 2305.12972, section 3: a 4x4 stem of
    stride 4, then stages of one 1x1 convolution, at most one 2x2 max pooling
    and one series activation each.

    Args:
        arch (str | dict): '5' to '13', '13-x1.5', '13-x1.5-ada', or a dict
            with

            - ``dims`` (list[int]): channels of the stem, then of each stage;
            - ``strides`` (list[int]): 1 or 2 for each stage;
            - ``ada_pool`` (list[int], optional): for each stage of stride 2
              the output size, in pixels, of its adaptive max pooling, and 0
              for the others. The stem's stride is then 3.

            Defaults to '6'.
        in_channels (int): Channels of the image. Defaults to 3.
        act_num (int): n of the series activations. Defaults to 3.
        out_indices (Sequence[int]): The stages whose outputs are returned;
            negative ones count from the end. Defaults to (-1, ).
        frozen_stages (int): How many stages are frozen, besides the stem; 0
            freezes only the stem, -1 nothing. Defaults to -1.
        norm_cfg (dict): Config of the batch norms.
            Defaults to ``dict(type='BN', eps=1e-6)``.
        act_cfg (dict): Config of the activation A of deep training and of
            the series activations. Defaults to ``dict(type='ReLU')``.
        norm_eval (bool): Whether batch norms keep their running statistics
            while training. Defaults to False.
        with_cp (bool): Whether to recompute each stage in the backward pass
            instead of storing its intermediate tensors. Defaults to False.
        deep_training (bool): Whether to build the train form, where each
            convolution is two; False builds the fine-tune form.
            Defaults to True.
        deploy (bool): Whether to build the deploy form. Defaults to False.
        channels_last (bool): Whether weights, and with them the feature maps
            in training, have the memory format in which a GPU is fastest.
            The outputs differ by rounding only. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialization. Defaults to
            the authors': truncated normal of std 0.02 for weights, 0 for
            biases, 1 and 0 for batch norms.

    Raises:
        ValueError: If ``arch`` is unknown or inconsistent, or
            ``out_indices`` or ``frozen_stages`` are out of range, or
            ``out_indices`` names a stage twice.

    Example:
        >>> net = VanillaNet('6', out_indices=(0, 1, 2, 3)).eval()
        >>> [tuple(x.shape) for x in net(torch.rand(1, 3, 224, 224))]
        [(1, 1024, 28, 28), (1, 2048, 14, 14), (1, 4096, 7, 7),
         (1, 4096, 7, 7)]
    """

    arch_settings = {
        '5': _arch([4, 8, 16, 32], [2, 2, 2]),
        '6': _arch([4, 8, 16, 32, 32], [2, 2, 2, 1]),
        '7': _arch([4, 4, 8, 16, 32, 32], [1, 2, 2, 2, 1]),
        '8': _deep(1),
        '9': _deep(2),
        '10': _deep(3),
        '11': _deep(4),
        '12': _deep(5),
        '13': _deep(6),
        '13-x1.5': _deep(6, width=1.5),
        '13-x1.5-ada': _deep(
            6, width=1.5, ada_pool=[0, 38, 19, 0, 0, 0, 0, 0, 0, 10, 0]),
    }  # yapf: disable

    def __init__(self, arch: str | dict = '6', in_channels: int = 3,
                 act_num: int = 3, out_indices: Sequence[int] = (-1, ),
                 frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN', eps=1e-6),
                 act_cfg: dict = dict(type='ReLU'), norm_eval: bool = False,
                 with_cp: bool = False, deep_training: bool = True,
                 deploy: bool = False, channels_last: bool = False,
                 init_cfg: dict | Sequence[dict] | None = INIT_CFG):
        super().__init__(init_cfg=init_cfg)
        dims, strides, ada_pool = self._parse_arch(arch)
        self.num_stages = len(strides)
        self.out_indices = self._parse_out_indices(out_indices)
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(f'frozen_stages must be from -1 to '
                             f'{self.num_stages}, but got {frozen_stages}')
        self.frozen_stages = frozen_stages
        check_loading(self, norm_cfg=norm_cfg, act_cfg=act_cfg, post_norm=True)
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        def make_stage(in_channels, out_channels, kernel_size, mid_channels,
                       pool=None, **kwargs):
            return VanillaStage(
                DeepTrainingConv2d(
                    in_channels, out_channels, kernel_size,
                    mid_channels=mid_channels, norm_cfg=norm_cfg,
                    act_cfg=act_cfg, post_norm=True,
                    deep_training=deep_training, deploy=deploy, **kwargs),
                SeriesActivation(
                    out_channels, act_num, act_cfg=act_cfg, norm_cfg=norm_cfg,
                    deploy=deploy),
                pool)

        stem = (dict(stride=4, padding=0)
                if ada_pool is None else dict(stride=3, padding=1))
        self.stem = make_stage(
            in_channels, dims[0], 4, mid_channels=dims[0], **stem)
        self.stages = ModuleList()
        for i, stride in enumerate(strides):
            pool = None
            if stride == 2:
                pool = (
                    nn.MaxPool2d(2) if ada_pool is None else
                    nn.AdaptiveMaxPool2d(ada_pool[i]))
            self.stages.append(
                make_stage(dims[i], dims[i + 1], 1, mid_channels=dims[i],
                           pool=pool))
        # Before an optimizer or DDP sees the weights.
        self.memory_format = (
            torch.channels_last if channels_last else torch.contiguous_format)
        self.to(memory_format=self.memory_format)
        self._freeze_stages()

    def init_weights(self) -> None:
        """Initialize; the memory format does not change the numbers."""
        self.to(memory_format=torch.contiguous_format)
        super().init_weights()
        self.to(memory_format=self.memory_format)

    def _parse_arch(self, arch) -> tuple[list[int], list[int], list | None]:
        if isinstance(arch, int):
            arch = str(arch)  # --cfg-options turns '6' into 6
        if isinstance(arch, str):
            if arch not in self.arch_settings:
                raise ValueError(
                    f'arch must be one of {", ".join(self.arch_settings)} or '
                    f'a dict, but got "{arch}"')
            arch = self.arch_settings[arch]
        unknown = set(arch) - {'dims', 'strides', 'ada_pool'}
        if unknown or not {'dims', 'strides'} <= set(arch):
            raise ValueError('arch must be a dict with dims, strides and '
                             f'optionally ada_pool, but got {dict(arch)}')
        dims, strides = arch['dims'], arch['strides']
        ada_pool = arch.get('ada_pool')
        if len(dims) != len(strides) + 1 or not strides:
            raise ValueError(
                'dims counts the stem and each stage, strides each stage, but '
                f'got {len(dims)} dims and {len(strides)} strides')
        if any(stride not in (1, 2) for stride in strides):
            raise ValueError(f'strides must be 1 or 2, but got {strides}')
        if ada_pool is not None and [p > 0 for p in ada_pool
                                     ] != [s == 2 for s in strides]:
            raise ValueError(
                'ada_pool must hold a size for each stage of stride 2 and 0 '
                f'for the others, but got {ada_pool} for strides {strides}')
        return dims, strides, ada_pool

    def _parse_out_indices(self, out_indices: Sequence[int]) -> list[int]:
        if isinstance(out_indices, int):
            out_indices = [out_indices]
        for index in out_indices:
            if not -self.num_stages <= index < self.num_stages:
                raise ValueError(
                    f'out_indices must be from {-self.num_stages} to '
                    f'{self.num_stages - 1}, but got {index}')
        stages = [index % self.num_stages for index in out_indices]
        if len(set(stages)) < len(stages):
            raise ValueError(
                'out_indices must name each stage once, but got '
                f'{tuple(out_indices)}, which are the stages {stages} of '
                f'{self.num_stages}')
        return stages

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Images, (N, in_channels, H, W), H and W at least the
                total stride (32 for the published variants).

        Returns:
            tuple[Tensor]: For each of ``out_indices``, in ascending order of
            stages, a map of (N, dims[i + 1], H_i, W_i).
        """
        x = self._run(self.stem, x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = self._run(stage, x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.with_cp and self.training):
            return stage(x)
        return cp.checkpoint(
            stage, x, use_reentrant=False,
            context_fn=lambda: (nullcontext(), keep_running_stats(stage)))

    def _freeze_stages(self) -> None:
        for module in [self.stem, *self.stages][:self.frozen_stages + 1]:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'VanillaNet':
        """Set the mode; frozen stages and norms stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    @property
    def deploy(self) -> bool:
        """bool: Whether the network is in deploy form."""
        return self.stem.act.deploy

    # For tools that call these methods of a module.
    switch_to_finetune = switch_to_finetune
    switch_to_deploy = switch_to_deploy

    def get_layer_depth(self, param_name: str,
                        prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rate decay.

        Args:
            param_name (str): The parameter's name in the whole model.
            prefix (str): The backbone's name in it, with a dot.
                Defaults to ''.

        Returns:
            tuple[int, int]: The depth, which is 0 for the stem, i + 1 for
            stage i and the last for parameters outside of the backbone, and
            the number of depths.
        """
        num_layers = self.num_stages + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix):]
        if name.startswith('stem.'):
            return 0, num_layers
        return int(name.split('.')[1]) + 1, num_layers
