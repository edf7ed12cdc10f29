# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...models import VanillaNet
from ...utils.errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class VanillaNetLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates for dense prediction, as the authors set them.

    For a detector, a segmentor or any model with a :class:`VanillaNet` as its
    ``backbone``. With L layers (``num_layers``) the layer id is 0 for the
    stem, ``min(i // 2 + 1, L)`` for stage i, from 0 on, and L + 1 for all
    parameters outside of the backbone. The learning rate is multiplied by
    ``decay_rate ** (L + 1 - id)``. Biases and one-dimensional parameters have
    no weight decay.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper; its
            optimizer needs an ``lr``.
        paramwise_cfg (dict): Settings of this constructor:

            - ``decay_rate`` (float): The factor between two layers, over 0.
              The authors use 0.6.
            - ``num_layers`` (int, optional): L. Defaults to half of the
              number of stages, rounded up: 6 for VanillaNet-13, which is the
              authors' value. With a smaller L the last stages share a layer;
              with a larger one the whole backbone learns more slowly.

    Raises:
        UserError: If ``paramwise_cfg`` holds something else or a value out
            of range, the optimizer has no ``lr``, or the model has no
            :class:`VanillaNet` as ``backbone``.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=8e-5, weight_decay=0.05),
        ...     constructor='mmpretrain.VanillaNetLayerDecayConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.6))
    """

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        unknown = set(cfg) - {'decay_rate', 'num_layers'}
        if unknown or 'decay_rate' not in cfg:
            raise UserError('paramwise_cfg must be a dict with decay_rate '
                            f'and optionally num_layers, but got {cfg}')
        if not cfg['decay_rate'] > 0:
            raise UserError('decay_rate must be over 0, but got '
                            f'{cfg["decay_rate"]}')
        if self.base_lr is None:
            raise UserError('the optimizer must have an lr, but got '
                            f'{self.optimizer_cfg}')

    def add_params(self, params: list[dict], module: nn.Module,
                   **kwargs) -> None:
        """Add a parameter group for each layer and kind of weight decay.

        Args:
            params (list[dict]): The parameter groups, extended in place.
                Besides the optimizer's settings a group has ``layer_id``,
                ``lr_scale`` and ``param_names``.
            module (nn.Module): The model.
            **kwargs: Not used; mmengine passes them to submodules.
        """
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, VanillaNet):
            raise UserError(f'{type(self).__name__} wants a model with a '
                            'VanillaNet as its backbone, but got '
                            f'{type(module).__name__} with '
                            f'{type(backbone).__name__}')
        num_layers = self.paramwise_cfg.get('num_layers')
        if num_layers is None:
            num_layers = (backbone.num_stages + 1) // 2
        if num_layers < 1:
            raise UserError(f'num_layers must be positive, got {num_layers}')

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
            if (layer_id, decays) not in groups:
                scale = self.paramwise_cfg['decay_rate']**(
                    num_layers + 1 - layer_id)
                group = dict(
                    params=[], param_names=[], layer_id=layer_id,
                    lr_scale=scale, lr=self.base_lr * scale)
                if self.base_wd is not None:
                    group['weight_decay'] = self.base_wd if decays else 0.0
                groups[layer_id, decays] = group
            groups[layer_id, decays]['params'].append(param)
            groups[layer_id, decays]['param_names'].append(name)
        params.extend(groups[key] for key in sorted(groups))
