# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The two detectors of the authors' release: which one, and its config."""
from mmengine import Config
from torch import Tensor

from ..utils.errors import UserError
from ..utils.registration import root
from ..utils.requirements import require
from .official import _some, describe_backbone

CONFIGS = dict(
    retinanet='retinanet_vanillanet-13_fpn_8xb4-ms-1x_coco.py',
    mask_rcnn='mask-rcnn_vanillanet-13_fpn_8xb4-ms-1x_coco.py')


def detector_config(state_dict: dict[str, Tensor],
                    load_from: str) -> tuple[Config, str]:
    """The config that builds a detector from its state dict under our keys.

    Args:
        state_dict (dict): Of a RetinaNet or a Mask R-CNN.
        load_from (str): The checkpoint that the config loads.

    Returns:
        tuple: The config, and what the detector is called.

    Raises:
        UserError: If it is another detector, or mmdet is not installed.
    """
    if 'bbox_head.retina_cls.weight' in state_dict:
        name, title = 'retinanet', 'RetinaNet'
    elif 'roi_head.mask_head.conv_logits.weight' in state_dict:
        name, title = 'mask_rcnn', 'Mask R-CNN'
    else:
        heads = [key for key in state_dict if 'head' in key]
        raise UserError('this is neither a RetinaNet nor a Mask R-CNN: it '
                        f'holds {_some(heads)}')
    backbone = describe_backbone(state_dict)
    require('mmdet')  # whose configs this one inherits from
    cfg = Config.fromfile(root() / 'configs' / 'detection' / CONFIGS[name])
    model = cfg.model
    model.backbone.update({k: v for k, v in backbone.items() if k != 'type'})
    model.backbone.pop('init_cfg', None)
    # Other widths and other classes than those of the release.
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
        head.bbox_head.num_classes = head.mask_head.num_classes = state_dict[
            'roi_head.mask_head.conv_logits.weight'].shape[0]
    cfg.load_from = load_from
    return cfg, title
