# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The config that builds a converted model."""
import copy

from mmengine.config import Config

from ..utils.config_options import type_name

# For each form: the argument that builds it, the types that take it, and the
# hooks that the form does not use.
FORMS = dict(
    finetune=dict(
        argument=dict(deep_training=False),
        types=('VanillaNet', 'VanillaNetHead', 'DeepTrainingConv2d',
               'WithDeepTraining'),
        unused_hooks=('DeepTrainingHook', )),
    deploy=dict(
        argument=dict(deploy=True),
        types=('VanillaNet', 'VanillaNetHead', 'DeepTrainingConv2d',
               'SeriesActivation', 'WithDeepTraining'),
        unused_hooks=('DeepTrainingHook', 'ReparameterizeHook', 'EMAHook')))


def make_deploy_config(cfg: Config, form: str = 'deploy') -> Config:
    """Make the config that builds a later form of a config's model.

    Pretrained weights, ``load_from``, ``resume`` and the hooks that the form
    does not use are removed.

    Args:
        cfg (Config): A config of any toolbox, also in mmengine's new style,
            where types are classes.
        form (str): 'deploy' or 'finetune'. Defaults to 'deploy'.

    Returns:
        Config: The new config; ``cfg`` is not changed.
    """
    cfg = copy.deepcopy(cfg)
    wanted = FORMS[form]
    _convert(cfg.model, wanted['types'], wanted['argument'])
    cfg.load_from = None
    cfg.resume = False
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks
            if type_name(hook) not in wanted['unused_hooks']
        ]
    return cfg


def _convert(node, types: tuple, argument: dict) -> None:
    if isinstance(node, (list, tuple)):
        for child in node:
            _convert(child, types, argument)
    elif isinstance(node, dict):
        if type_name(node) in types:
            node.update(argument)
        # A written config holds names. mmcv finds this function by its own
        # name, not by the module's before it.
        if getattr(node.get('type'), '__module__', '') == 'mmcv.ops.nms':
            node['type'] = node['type'].__name__
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and type_name(init_cfg) in (
                'Pretrained', 'PretrainedInit'):
            node.pop('init_cfg')
        if node.get('pretrained'):  # argument of timm and older networks
            node['pretrained'] = False if node['pretrained'] is True else None
        for child in node.values():
            _convert(child, types, argument)
