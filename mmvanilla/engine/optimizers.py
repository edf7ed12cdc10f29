# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models import VanillaNet
from ..utils.errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class VanillaNetLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates for dense prediction, as the authors set them.

    For a model with a :class:`VanillaNet` as ``backbone``. With L layers the
    layer id is 0 for the stem, ``min(i // 2 + 1, L)`` for stage i, and L + 1
    outside of the backbone. The learning rate is multiplied by
    ``decay_rate ** (L + 1 - id)``. Biases and one-dimensional parameters have
    no weight decay.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper; its
            optimizer needs an ``lr``.
        paramwise_cfg (dict): ``decay_rate`` (float), over 0, which is 0.6 for
            the authors; and ``num_layers`` (int, optional), L, which defaults
            to half of the number of stages, rounded up.

    Raises:
        UserError: For another ``paramwise_cfg``, an optimizer without ``lr``
            or another backbone.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=8e-5, weight_decay=0.05),
        ...     constructor='mmpretrain.VanillaNetLayerDecayConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.6))
    """

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        if {*cfg} - {'decay_rate', 'num_layers'} or not (
                cfg.get('decay_rate', 0) > 0 < cfg.get('num_layers', 1)):
            raise UserError('paramwise_cfg must be a dict with decay_rate and '
                            f'optionally num_layers, over 0, but got {cfg}')
        if self.base_lr is None:
            raise UserError(f'no lr in the optimizer {self.optimizer_cfg}')

    def add_params(self, params: list[dict], module: nn.Module,
                   **kwargs) -> None:
        """Add a parameter group for each layer and kind of weight decay."""
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, VanillaNet):
            raise UserError('VanillaNetLayerDecayConstructor needs VanillaNet '
                            f'as backbone, but got {type(backbone).__name__}')
        num_layers = self.paramwise_cfg.get(
            'num_layers', (backbone.num_stages + 1) // 2)
        groups = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer_id = num_layers + 1
            if name.startswith('backbone.'):
                depth, _ = backbone.get_layer_depth(name, prefix='backbone.')
                # Stage i has depth i + 1, and the stem has 0.
                layer_id = min((depth + 1) // 2, num_layers)
            decays = param.ndim > 1 and not name.endswith('.bias')
            scale = self.paramwise_cfg['decay_rate']**(
                num_layers + 1 - layer_id)
            group = groups.setdefault((layer_id, decays), dict(
                params=[], param_names=[], layer_id=layer_id, lr_scale=scale,
                lr=self.base_lr * scale))
            group['params'].append(param)
            group['param_names'].append(name)
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd if decays else 0.0
        params.extend(groups[key] for key in sorted(groups))
