# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predict an image or a folder of images, and list the results in a table.

The model is a classifier, a detector of mmdetection or a segmentor of
mmsegmentation. The weights of a config OUT.py default to OUT.pth beside it.
"""
import argparse
import os.path as osp
import sys
import warnings
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmpretrain import ImageClassificationInferencer, list_models
from mmpretrain.apis import ModelHub
from mmpretrain.registry import TRANSFORMS
from mmpretrain.visualization import UniversalVisualizer

from ..checkpoints import load_checkpoint, load_state_dict
from ..checkpoints.read import safe_reading
from ..datasets import image_files
from ..datasets.image_folder import find_images, left_out
from ..utils import configs
from ..utils.cfg_options import nearest
from ..utils.errors import UserError, exit_on_user_error
from ..utils.files import is_exported
from ..utils.requirements import require
from ..utils.terminal import markdown_table, some, track
from .fonts import font_for
from .own_data import set_num_classes


def predict(images: str, model: str, checkpoint: str | None = None,
            out: str | None = None, deploy: bool = False, top: int = 5) -> str:
    """Predict images as the command does; return its Markdown table."""
    if is_exported(model) and (checkpoint or deploy):
        raise UserError(f'{model} is an exported file, which needs no '
                        'checkpoint and is merged')
    if top < 1:
        raise UserError(f'--top must be 1 or more, got {top}')
    root = Path(images).expanduser()
    if not root.exists():
        raise UserError(f'no image or folder {images}')
    others = Counter()
    names = find_images(root, others) if root.is_dir() else [root.name]
    root = root if root.is_dir() else root.parent
    if not names:
        raise UserError(f'no images in {images}: names must end in '
                        f'{", ".join(image_files.SUFFIXES)}')
    bad, notes = image_files.find_unreadable(root, names, False)
    notes *= len(names) > len(bad)  # an error says it of one image
    for note in notes + left_out(others):
        print(note, file=sys.stderr)
    if out and Path(out).resolve() == root.resolve():
        raise UserError(f'--out {out} is where the images are')
    rows = []
    with safe_reading():
        cfg, checkpoint = _find_model(model, checkpoint)
        with configs.scope_of(cfg):
            header, predict_one = _predictor(cfg, checkpoint, deploy)
            for name in track(names, 'predicting', len(names)):
                drawn = '' if out is None else osp.join(out, name)
                try:
                    found = predict_one(str(root / name), drawn)
                except Exception as e:
                    problem, _ = image_files.check_image(root / name)
                    what = 'cannot be read'
                    if not problem and isinstance(e, UserError):
                        problem, what = str(e), 'does not fit'
                    if not problem:
                        raise
                    if len(names) == 1:
                        raise UserError(f'the image {root / name} {what}: '
                                        f'{problem}') from None
                    if what == 'does not fit':
                        print(f'{name} {what}: {problem}', file=sys.stderr)
                    found = [(what, *[''] * (len(header) - 1))]
                # Only the first row of an image has its name.
                rows += [(some([name]) * (i == 0), *row)
                         for i, row in enumerate(found[:top])]
    return markdown_table(['image', *header], rows)


def _find_model(model, checkpoint):
    if is_exported(model):
        return _file_config(model), None
    if model.endswith('.py'):
        cfg = configs.read_config(model)
        beside = Path(model).with_suffix('.pth')
        found = str(beside) if beside.is_file() else cfg.get('load_from')
    elif model in list_models():
        cfg, found = ModelHub.get(model).config, ModelHub.get(model).weights
    else:
        near = nearest(model, list_models())
        raise UserError(f'{model} is neither a config, which ends in .py, nor '
                        'the name of a model' + f': did you mean {near}?' *
                        bool(near))
    if not (checkpoint or found):
        raise UserError(f'no checkpoint of {model} is known: add its path')
    return cfg, checkpoint or found


def _file_config(path):
    """A config that predicts as an exported file's metadata tell."""
    from ..export.exported import read_metadata, scope_of_file
    meta = read_metadata(path)
    scope = scope_of_file(path, meta)
    require(*{scope} & {*configs.TOOLBOXES[1:]})
    if meta['preprocess'] is None:
        raise UserError(f'{path} does not tell its preprocessing, which has '
                        'unknown steps: predict with its checkpoint')
    dataset, processor, to_rgb, pack = _PARTS[scope]
    pipeline = [*map(_tuples, meta['preprocess'])]
    for step in pipeline:  # in any toolbox
        step['type'] = step['type'].replace(
            'ResizeEdge', 'mmpretrain.ResizeEdge')
    return Config(dict(
        default_scope=scope,
        model=dict(type='mmvanilla.export.exported.ExportedModel', file=path,
                   data_preprocessor={
                       'type': processor, 'mean': meta['mean'],
                       'std': meta['std'],
                       to_rgb: meta['channel_order'] == 'RGB'}),
        test_dataloader=dict(dataset=dict(
            type=dataset, metainfo=dict(classes=meta['labels']),
            pipeline=[*pipeline, dict(type=pack)]))))


def _tuples(value):
    """Transforms take tuples, which JSON turns into lists."""
    if isinstance(value, dict):
        return {key: _tuples(x) for key, x in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _predictor(cfg, checkpoint, deploy):
    scope, dataset = configs.scope_name(cfg), configs.test_dataset(cfg)
    if scope not in _PREDICTORS or not dataset.get('pipeline'):
        raise UserError(
            f'cannot predict with {cfg.filename}, which must be a config of '
            f'{", ".join(_PREDICTORS)} with a pipeline in test_dataloader')
    configs.check_parts(cfg, 'prediction', 'model')
    build, *header = _PREDICTORS[scope]
    content = load_checkpoint(checkpoint) if checkpoint else {}
    meta = content.get('meta') or {}
    known = configs.class_names(cfg, meta)
    if scope == 'mmpretrain' and len(known) != len(
            configs.class_names(cfg, {})):
        set_num_classes(cfg, len(known))  # trained with --data
    # Numbers are for classes without a name.
    colors = np.random.default_rng(0).integers(0, 256, (30000, 3)).tolist()
    look = dict(palette=[*map(tuple, colors)], classes=known + [
        str(i) for i in range(len(known), len(colors))])
    for transform in dataset.pipeline:  # inferencers look for plain names
        name = configs.type_name(transform)
        transform['type'] = name if name[:4] == 'Load' else transform['type']
    cfg.test_dataloader = dict(dataset=dataset)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with warnings.catch_warnings():  # that no weights are loaded yet
        warnings.simplefilter('ignore')
        inferencer, predict_one = build(cfg, look)
    if checkpoint:  # the inferencers only log keys that do not fit
        load_state_dict(
            inferencer.model, content.get('state_dict', content), checkpoint)
    if deploy:
        from ..reparam.merge import switch_loaded
        switch_loaded(inferencer.model, checkpoint)
    # As a list: a generator would run outside of the context.
    return header, font_for(known)(
        lambda path, drawn: list(predict_one(path, drawn)))


def _classifier(cfg, look):
    dataset = cfg.test_dataloader.dataset
    dataset.type = 'CustomDataset'  # the inferencer looks for its classes
    # Images are read here, in the channels that the network needs.
    load = dict(type='LoadImageFromFile')
    if dataset.pipeline[0].type == load['type']:
        load = dataset.pipeline[0]
    if configs.image_channels(cfg) == 1:
        load.setdefault('color_type', 'grayscale')
    read = TRANSFORMS.build(load)
    inferencer = ImageClassificationInferencer(cfg, False, get_device())
    visualizer, classes = UniversalVisualizer(), look['classes']

    def predict_one(path, drawn):
        # Not inferencer(image), which shows a progress bar for each image.
        batch, = inferencer.preprocess([read(dict(img_path=path))['img']])
        sample, = inferencer.forward(batch)
        if drawn:
            # OpenCV cannot write other formats, or not in color.
            known = drawn.lower().endswith(('.jpg', '.jpeg', '.png'))
            visualizer.visualize_cls(
                mmcv.imread(path, channel_order='rgb'), sample, classes,
                draw_gt=False, out_file=drawn if known else f'{drawn}.png')
        best = sample.pred_score.sort(descending=True, stable=True)
        for score, label in zip(best.values.tolist(), best.indices.tolist()):
            yield classes[label], f'{score:.4f}'

    return inferencer, predict_one


def _detector(cfg, look):
    from mmdet.apis import DetInferencer
    cfg.setdefault('visualizer', dict(type='DetLocalVisualizer'))
    inferencer = DetInferencer(cfg, None, get_device(), show_progress=False)
    inferencer.model.dataset_meta.update(look)  # also the visualizer's

    def predict_one(path, drawn):
        found, = inferencer(path, no_save_vis=not drawn,
                            out_dir=osp.dirname(drawn))['predictions']
        boxes = zip(found['scores'], found['labels'], found['bboxes'])
        for score, label, box in sorted(boxes, reverse=True):
            corners = ', '.join(f'{x:.1f}' for x in box)
            yield look['classes'][label], f'{score:.4f}', corners
        if not found['scores']:
            yield 'nothing', '', ''

    return inferencer, predict_one


def _segmentor(cfg, look):
    from mmseg.apis import MMSegInferencer
    cfg.setdefault('visualizer', dict(type='SegLocalVisualizer'))
    inferencer = MMSegInferencer(
        cfg, device=get_device(), show_progress=False)
    inferencer.model.dataset_meta = look

    def predict_one(path, drawn):
        labels = inferencer(path, out_dir=osp.dirname(drawn))['predictions']
        found, counts = np.unique(labels, return_counts=True)
        for i in np.argsort(-counts):
            share = f'{100 * counts[i] / labels.size:.1f} %'
            yield look['classes'][found[i]], share

    return inferencer, predict_one


# Types of a toolbox: data set, preprocessor with an argument, last transform.
_PARTS = dict(
    mmpretrain=('CustomDataset', 'ClsDataPreprocessor', 'to_rgb',
                'PackInputs'),
    mmdet=('CocoDataset', 'DetDataPreprocessor', 'bgr_to_rgb',
           'PackDetInputs'),
    mmseg=('BaseSegDataset', 'SegDataPreProcessor', 'bgr_to_rgb',
           'PackSegInputs'))
# How to open a toolbox's model, and the columns of its table.
_PREDICTORS = dict(
    mmpretrain=(_classifier, 'class', 'score'),
    mmdet=(_detector, 'class', 'score', 'box (x1, y1, x2, y2)'),
    mmseg=(_segmentor, 'class', 'share of pixels'))


@exit_on_user_error
def main() -> None:
    """Run the command ``mmvanilla-predict``."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('images', help='an image or a folder of images')
    add('model', help='a config, the name of a model, as in list_models, or a '
        'file of tools/export.py, which needs nothing else')
    add('checkpoint', nargs='?', help='the weights; defaults to those beside '
        'the config, else its load_from, or the published ones of a name')
    add('--out', help='folder for images with the predictions drawn in')
    add('--deploy', action='store_true', help='merge the model first')
    add('--top', type=int, default=5,
        help='how many classes or detections to list; defaults to 5')
    print(predict(**vars(parser.parse_args())))
