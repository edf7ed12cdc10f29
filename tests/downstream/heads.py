# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Heads of mmdet and mmseg on a narrow VanillaNet.

    python tests/downstream/heads.py

trains each for a step, merges it, compares its predictions, and writes
docs/figures/heads.json, from which the table of the docs is.
"""
import copy
import json
from pathlib import Path

import mmdet
import mmseg
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmvanilla.reparam import switch_to_deploy
from mmvanilla.reparam.compare import Comparison, Result
from mmvanilla.reparam.samples import Samples
from mmvanilla.utils.terminal import markdown_table

OUT = Path(__file__).resolve().parents[2] / 'docs' / 'figures' / 'heads.json'
# Of the four stages, in the places of those of the ResNet that is replaced.
CHANNELS = [16, 32, 64, 64]

# Name, and the config of the toolbox that the rest of the model is from.
DETECTORS = {
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
    'FreeAnchor': 'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'FoveaBox': 'foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'PAA': 'paa/paa_r50_fpn_1x_coco.py',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco.py',
    'VarifocalNet': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'TOOD': 'tood/tood_r50_fpn_1x_coco.py',
    'RTMDet': 'rtmdet/rtmdet_s_8xb32-300e_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'Sparse R-CNN': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'SOLOv2': 'solov2/solov2_r50_fpn_1x_coco.py',
    'DETR': 'detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR':
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
SEGMENTORS = {
    'FCN': 'fcn_r50-d8.py',
    'PSPNet': 'pspnet_r50-d8.py',
    'DeepLabV3+': 'deeplabv3plus_r50-d8.py',
    'UPerNet': 'upernet_r50.py',
    'Semantic FPN': 'fpn_r50.py',
    'OCRNet': 'ocrnet_r50-d8.py',
    'SegFormer': 'segformer_mit-b0.py',
}
SIZE = 64


def read(name: str) -> Config:
    """A head's config with the narrow backbone, to train on a CPU."""
    package, path = ((mmdet, Path(DETECTORS[name])) if name in DETECTORS else
                     (mmseg, Path('_base_', 'models', SEGMENTORS[name])))
    cfg = Config.fromfile(
        Path(package.__file__).parent / '.mim' / 'configs' / path)
    cfg.default_scope = package.__name__
    model = cfg.model
    indices = tuple(
        model.backbone.get('out_indices',
                           (1, 2, 3) if name == 'RTMDet' else (0, 1, 2, 3)))
    # The dilated ResNets of mmseg stay at stride 8.
    strides = [1, 2, 1, 1] if '-d8' in str(path) else [1, 2, 2, 2]
    model.backbone = dict(
        type='mmpretrain.VanillaNet',
        arch=dict(dims=[16, *CHANNELS], strides=strides),
        act_num=1,
        out_indices=indices)
    if name == 'DINO':  # no more queries than pixels
        model.num_queries = 50
    channels = [CHANNELS[i] for i in indices]
    if model.get('neck'):
        model.neck.in_channels = channels
    else:
        _set_in_channels(model, channels)
    _change(cfg.model)
    if name in SEGMENTORS:
        model.data_preprocessor.size = (SIZE, SIZE)
    return cfg


def _set_in_channels(model, channels: list[int]) -> None:
    """Give heads without a neck the channels of the maps that they take."""
    for head in ('decode_head', 'auxiliary_head', 'panoptic_head'):
        heads = model.get(head) or []
        for each in [heads] if isinstance(heads, dict) else heads:
            index = each.get('in_index', range(len(channels)))
            each.in_channels = (
                channels[index] if isinstance(index, int) else
                [channels[i] for i in index])
            if 'c1_in_channels' in each:
                each.c1_in_channels = channels[0]


def _change(node) -> None:
    """No SyncBN, no pretrained weights, no padding, no score threshold."""
    if isinstance(node, (list, tuple)):
        for child in node:
            _change(child)
    if not isinstance(node, dict):
        return
    if node.get('type') == 'SyncBN':
        node['type'] = 'BN'
    for key in ('pretrained', 'batch_augments'):
        if key in node:
            node[key] = None
    if 'score_thr' in node:
        node['score_thr'] = 0.0
    for child in node.values():
        _change(child)


def batch(name: str) -> dict:
    """Two images with a square, and what a head is told of it."""
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    image[8:40, 8:40] = (220, 30, 30)
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[:, 8:40, 8:40] = 1
    metainfo = dict(
        img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1., 1.))
    if name in DETECTORS:
        sample = DetDataSample(
            metainfo=metainfo,
            gt_instances=InstanceData(
                bboxes=torch.tensor([[8., 8., 40., 40.]]),
                labels=torch.tensor([1]),
                masks=BitmapMasks(mask, SIZE, SIZE)))
        if name == 'RTMDet':  # its masks would be of tensors
            del sample.gt_instances.masks
    else:
        sample = SegDataSample(metainfo=metainfo)
        sample.gt_sem_seg = PixelData(
            data=torch.from_numpy(mask.astype(np.int64)))
    return dict(
        inputs=[torch.from_numpy(image).permute(2, 0, 1) for _ in range(2)],
        data_samples=[sample.clone() for _ in range(2)])


def train_and_merge(name: str):
    """Train a head for a step and merge the model.

    Returns:
        tuple: The trained model and the merged one, both in eval mode, the
        loss, and the parameters of the backbone that the step left alone.
    """
    cfg = read(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
        model.init_weights()
        if name == 'TOOD':  # as in a run
            MessageHub.get_current_instance().update_info('epoch', 0)
        before = copy.deepcopy(dict(model.backbone.named_parameters()))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = model.train().train_step(batch(name), OptimWrapper(optimizer))
    unmoved = [
        k for k, p in model.backbone.named_parameters()
        if torch.equal(p, before[k])
    ]
    merged = copy.deepcopy(model).eval()
    switch_to_deploy(merged)
    return model.eval(), merged, losses['loss'], unmoved


def scope(name: str):
    """The toolbox's scope, for as long as its model runs."""
    return DefaultScope.overwrite_default_scope(
        'mmdet' if name in DETECTORS else 'mmseg')


def compare(name: str, model, merged) -> tuple[float, list[int]]:
    """Compare a merged model with the one before.

    Returns:
        tuple: The largest relative error of a feature map, and how many
        predictions there are and how many of them are the same.
    """
    found = Comparison(Samples([]), 'fp32', 1e-4)
    with torch.no_grad(), scope(name):
        data = model.data_preprocessor(batch(name), False)
        errors = [((b - a).norm() / a.norm()).item() for a, b in zip(
            model.extract_feat(data['inputs']),
            merged.extract_feat(data['inputs']))]
        predictions = []
        for each in (model, merged):
            x = data['inputs']
            if name == 'Sparse R-CNN':
                # Its six untrained stages make pixels of a rounding error.
                # Not all detectors of mmdet can compute in float64.
                each, x = copy.deepcopy(each).double(), x.double()
            predictions.append(
                each.predict(x, copy.deepcopy(data['data_samples'])))
        for i, pair in enumerate(zip(*predictions)):
            found.add(i, *(Result({}, sample) for sample in pair))
    return max(errors), found.counts[
        'detections in agreement' if name in DETECTORS else
        'pixels with the same label']


def measure() -> list[dict]:
    """Each head: trained for a step, merged, compared."""
    rows = []
    for name, config in {**DETECTORS, **SEGMENTORS}.items():
        model, merged, _, _ = train_and_merge(name)
        error, (total, same) = compare(name, model, merged)
        rows.append(
            dict(
                head=name,
                toolbox='mmdet' if name in DETECTORS else 'mmseg',
                config=config,
                relative_error=error,
                predictions=total,
                same=same))
    return rows


def table(rows: list[dict]) -> str:
    """The table of the docs."""
    return markdown_table([
        'head', 'toolbox', 'its config', 'relative error after merging',
        'predictions that are the same'
    ], [(row['head'], row['toolbox'], f'`{row["config"]}`',
         f'{row["relative_error"]:.0e}',
         f'{row["same"]:,} of {row["predictions"]:,}') for row in rows])


def main() -> None:
    rows = measure()
    OUT.write_text(json.dumps(rows, indent=1) + '\n')
    print(table(rows))


if __name__ == '__main__':
    main()
