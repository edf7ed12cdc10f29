# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predict an image or a folder of images, and list the results in a table.

The model is a classifier, a detector of mmdetection or a segmentor of
mmsegmentation. The weights of a config OUT.py default to OUT.pth beside it.
"""
import argparse
import difflib
import os.path as osp
from collections.abc import Callable
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS
from mmpretrain.apis import ModelHub, list_models

from ..checkpoints import load_checkpoint, load_state_dict
from ..checkpoints.read import safe_reading
from ..datasets import image_folder
from ..utils import configs
from ..utils.errors import UserError, exit_on_user_error
from ..utils.terminal import markdown_table, some, track
from .own_data import set_num_classes, with_loading


@torch.no_grad()
def predict(images: str, model: str, checkpoint: str | None = None,
            out: str | None = None, deploy: bool = False, top: int = 5) -> str:
    """Predict images as the command does; return its Markdown table."""
    if top < 1:
        raise UserError(f'--top must be 1 or more, got {top}')
    root = Path(images).expanduser()
    if not root.exists():
        raise UserError(f'no image or folder {images}')
    names = image_folder.find_images(root) if root.is_dir() else [root.name]
    root = root if root.is_dir() else root.parent
    if not names:
        raise UserError(f'no images in {images}: names must end in '
                        f'{", ".join(image_folder.SUFFIXES)}')
    if out is not None and Path(out).resolve() == root.resolve():
        raise UserError(f'--out {out} is where the images are')
    rows = []
    with safe_reading():
        cfg, checkpoint = _find_model(model, checkpoint)
        with configs.scope_of(cfg):
            header, predict_one = _predictor(cfg, checkpoint, deploy, out)
            for name in track(names, 'predicting', len(names)):
                try:
                    found = predict_one(root, name)
                except Exception:
                    if image_folder.decode(root / name) is not None:
                        raise
                    if len(names) == 1:
                        raise UserError(
                            f'cannot read the image {root / name}') from None
                    found = [('cannot be read', *[''] * (len(header) - 1))]
                # Only the first row of an image has its name.
                rows += [(name * (i == 0), *row)
                         for i, row in enumerate(found[:top])]
    return markdown_table(['image', *header], rows)


def _find_model(model, checkpoint):
    if model.endswith('.py'):
        cfg = configs.read_config(model)
        beside = Path(model).with_suffix('.pth')
        found = str(beside) if beside.is_file() else cfg.get('load_from')
    elif model in list_models():
        cfg, found = ModelHub.get(model).config, ModelHub.get(model).weights
    else:
        near = difflib.get_close_matches(model, list_models())
        hint = f': did you mean {some(near)}?' if near else ''
        raise UserError(f'{model} is neither a config, which ends in .py, nor '
                        f'the name of a model{hint}')
    if not (checkpoint or found):
        raise UserError(f'no checkpoint of {model} is known: add its path')
    return cfg, checkpoint or found


def _predictor(cfg, checkpoint, deploy, out) -> tuple[list, Callable]:
    """The columns of a toolbox's table, and what makes an image's rows."""
    scope = configs.scope_name(cfg)
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = configs.unwrap_dataset(loader.get('dataset') or {})
    if scope not in _TOOLBOXES or not dataset.get('pipeline'):
        raise UserError(
            f'cannot predict with {cfg.filename}, which must be a config of '
            f'{", ".join(_TOOLBOXES)} with a pipeline in test_dataloader')
    configs.check_parts(cfg, 'prediction', 'model')
    content = load_checkpoint(checkpoint)
    meta = content.get('meta') or {}
    known = configs.class_names(cfg, meta)
    if scope == 'mmpretrain' and len(known) != len(
            configs.class_names(cfg, {})):
        set_num_classes(cfg, len(known))  # trained with --data
    model = configs.build_model(cfg).to(get_device())
    load_state_dict(model, content.get('state_dict', content), checkpoint)
    if deploy:
        from ..reparam.merge import switch_loaded
        switch_loaded(model, checkpoint)
    pipeline = Compose([
        x for x in with_loading(dataset, configs.image_channels(cfg))
        if not configs.type_name(x).endswith('Annotations')])
    visualizer, draw, list_rows, *header = _TOOLBOXES[scope]
    visualizer = VISUALIZERS.get(f'{scope}.{visualizer}')()
    # Numbers and random colors are for classes without.
    classes = known + [str(i) for i in range(len(known), 30000)]
    colors = np.random.default_rng(0).integers(0, 256, (30000, 3)).tolist()
    palette = (meta.get('dataset_meta') or {}).get('palette') or ()
    visualizer.dataset_meta = dict(classes=classes, palette=[
        *map(tuple, palette), *map(tuple, colors[len(palette):])])

    def predict_one(root, name):
        path = str(root / name)
        batch = pseudo_collate([pipeline(dict(img_path=path, img_id=0))])
        sample = model.test_step(batch)[0].cpu()
        if out is not None:
            # OpenCV cannot write other formats, or not in color.
            plain = name.lower().endswith(('.jpg', '.jpeg', '.png'))
            getattr(visualizer, draw)(
                name='', image=mmcv.imread(path, channel_order='rgb'),
                data_sample=sample, draw_gt=False,
                out_file=osp.join(out, name if plain else f'{name}.png'))
        return list_rows(sample, classes)

    return header, predict_one


def _list_scores(sample, classes):
    best = sample.pred_score.sort(descending=True, stable=True)
    return [(classes[i], f'{score:.4f}') for score, i in zip(
        best.values.tolist(), best.indices.tolist())]


def _list_boxes(sample, classes):
    found = sample.pred_instances
    boxes = sorted(zip(found.scores.tolist(), found.labels.tolist(),
                       found.bboxes.tolist()), reverse=True)
    return [(classes[i], f'{score:.4f}', ', '.join(f'{x:.1f}' for x in box))
            for score, i, box in boxes] or [('nothing', '', '')]


def _list_shares(sample, classes):
    labels = sample.pred_sem_seg.data
    counts = labels.flatten().bincount().sort(descending=True, stable=True)
    return [(classes[i], f'{100 * count / labels.numel():.1f} %')
            for count, i in zip(counts.values.tolist(),
                                counts.indices.tolist()) if count]


# A toolbox's visualizer, what draws and lists, the columns of the table.
_TOOLBOXES = dict(
    mmpretrain=('UniversalVisualizer', 'visualize_cls', _list_scores,
                'class', 'score'),
    mmdet=('DetLocalVisualizer', 'add_datasample', _list_boxes,
           'class', 'score', 'box (x1, y1, x2, y2)'),
    mmseg=('SegLocalVisualizer', 'add_datasample', _list_shares,
           'class', 'share of pixels'))


@exit_on_user_error
def main() -> None:
    """Run the command ``mmvanilla-predict``."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('images', help='an image or a folder of images')
    add('model', help='a config, or the name of a model, as in list_models')
    add('checkpoint', nargs='?', help='the weights; defaults to those beside '
        'the config, else its load_from, or the published ones of a name')
    add('--out', help='folder for images with the predictions drawn in')
    add('--deploy', action='store_true', help='merge the model first')
    add('--top', type=int, default=5,
        help='how many classes or detections to list; defaults to 5')
    print(predict(**vars(parser.parse_args())))
