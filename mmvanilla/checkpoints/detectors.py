# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Configs of the two detectors of the authors' release."""
from mmengine import Config
from torch import Tensor

from ..utils.errors import UserError
from ..utils.registration import root
from ..utils.requirements import require
from ..utils.terminal import some
from .official import describe_backbone

CONFIGS = dict(
    retinanet='retinanet_vanillanet-13_fpn_8xb4-ms-1x_coco.py',
    mask_rcnn='mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco.py')


def detector_config(state_dict: dict[str, Tensor],
                    load_from: str) -> tuple[Config, str]:
    """Make the config that builds a detector from its state dict.

    Args:
        state_dict (dict): Of a RetinaNet or a Mask R-CNN, with our keys.
        load_from (str): The checkpoint that the config loads.

    Returns:
        tuple: The config, and the detector's name.

    Raises:
        UserError: If it is another detector, keys are missing, or mmdet is
            not installed.
    """
    if 'bbox_head.retina_cls.weight' in state_dict:
        name, title = 'retinanet', 'RetinaNet'
    elif 'roi_head.mask_head.conv_logits.weight' in state_dict:
        name, title = 'mask_rcnn', 'Mask R-CNN'
    else:
        heads = [key for key in state_dict if 'head' in key]
        raise UserError('this is neither a RetinaNet nor a Mask R-CNN: it '
                        f'holds {some(heads)}')
    backbone = describe_backbone(state_dict)
    require('mmdet')  # whose configs this one inherits from
    cfg = Config.fromfile(root() / 'configs' / 'detection' / CONFIGS[name])
    model = cfg.model
    model.backbone.update({k: v for k, v in backbone.items() if k != 'type'})
    model.backbone.pop('init_cfg', None)
    # Widths and numbers of classes may differ from those of the release.
    try:
        model.neck.in_channels = [
            state_dict[f'neck.lateral_convs.{i}.conv.weight'].shape[1]
            for i in range(len(model.neck.in_channels))
        ]
        if name == 'retinanet':
            outputs = state_dict['bbox_head.retina_cls.weight'].shape[0]
            anchors = state_dict['bbox_head.retina_reg.weight'].shape[0] // 4
            model.bbox_head.num_classes = outputs // anchors
        else:
            head = model.roi_head
            classes = state_dict['roi_head.mask_head.conv_logits.weight']
            head.bbox_head.num_classes = classes.shape[0]
            head.mask_head.num_classes = classes.shape[0]
    except KeyError as e:
        raise UserError(f'the entry {e} of a {title} is missing') from e
    cfg.load_from = load_from
    return cfg, title
