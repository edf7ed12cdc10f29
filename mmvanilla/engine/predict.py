# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Predict images with a model of any toolbox; list and draw the result."""
import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import TRANSFORMS
from mmpretrain.apis import ModelHub
from mmpretrain.visualization import UniversalVisualizer

from ..checkpoints import load_checkpoint, load_weights
from ..datasets.image_folder import SUFFIXES, decode, find_images
from ..reparam.switch import switch_loaded
from ..utils.building import build_model, image_channels, read_config, scope_of
from ..utils.config_options import check_parts, scope_name, type_name
from ..utils.data import class_names, unwrap_dataset
from ..utils.errors import UserError
from ..utils.tables import markdown_table
from ..utils.terminal import some, track
from .own_images import set_num_classes

Row = tuple[str, ...]


def predict(images: str,
            model: str,
            checkpoint: str | None = None,
            out: str | None = None,
            deploy: bool = False,
            top: int = 5) -> str:
    """Predict one image or a folder of images.

    Args:
        images (str): An image, or a folder, which is searched with its
            subfolders.
        model (str): A config file of mmpretrain, mmdet or mmseg, or the name
            of a model that mmpretrain knows.
        checkpoint (str, optional): The weights. Defaults to None: the file
            beside the config with the suffix ``.pth``, else ``load_from`` of
            the config; for a name, its published weights.
        out (str, optional): A folder for images with the predictions drawn
            in. Defaults to None: none are drawn.
        deploy (bool): Whether to merge the model first. Defaults to False.
        top (int): How many classes or detections to list for an image.
            Defaults to 5.

    Returns:
        str: A Markdown table. For each image it lists the classes with the
        highest scores; for a detector the detections with the highest scores
        and their boxes, x1, y1, x2, y2 in pixels; for a segmentor the classes
        that cover most of the image.

    Raises:
        UserError: If images, model or checkpoint are missing or invalid,
            ``top`` is below 1, ``out`` is a file or the folder of the images,
            or the model cannot be merged.
    """
    if top < 1:
        raise UserError(f'--top must be 1 or more, got {top}')
    root, names = _find(images)
    if out is not None:
        if Path(out).resolve() == root.resolve():
            raise UserError(f'--out {out} is where the images are: name '
                            'another folder')
        if Path(out).exists() and not Path(out).is_dir():
            raise UserError(f'--out {out} is a file, and a folder is wanted')
    cfg, checkpoint = _find_model(model, checkpoint)
    scope = scope_name(cfg)
    if scope not in _PREDICTORS:
        raise UserError(f'cannot predict with a config of {scope}: only of '
                        f'{", ".join(_PREDICTORS)}')
    _check_parts(cfg, scope, out is not None)
    header, predictor = _PREDICTORS[scope](cfg, checkpoint, deploy, top)
    rows = []
    for name in track(names, 'predicting', len(names)):
        if decode(root / name) is None:
            if len(names) == 1:
                raise UserError(f'cannot read the image {root / name}')
            rows.append((name, 'cannot be read', *[''] * (len(header) - 1)))
            continue
        drawn = None if out is None else Path(out, name)
        # Only the first row of an image has its name.
        for i, row in enumerate(predictor(root / name, drawn)):
            rows.append((name if i == 0 else '', *row))
    return markdown_table(['image', *header], rows)


def _check_parts(cfg: Config, scope: str, draws: bool) -> None:
    parts = ['model']
    # mmseg's inferencer takes the names of classes from it.
    if scope == 'mmseg' or (scope == 'mmdet' and draws):
        parts.append('visualizer')
    check_parts(cfg, 'prediction', *parts)
    loader = cfg.get('test_dataloader') or (
        cfg.get('val_dataloader') if scope == 'mmpretrain' else None) or {}
    if not unwrap_dataset(loader.get('dataset') or {}).get('pipeline'):
        raise UserError(f'{cfg.filename} has no test_dataloader with a '
                        'pipeline, which says how images are prepared')


def _find(images: str) -> tuple[Path, list[str]]:
    path = Path(images).expanduser()
    if path.is_dir():
        names = find_images(path)
        if not names:
            raise UserError(f'no images in {images}: names must end in '
                            f'{", ".join(SUFFIXES)}')
        return path, names
    if not path.is_file():
        raise UserError(f'no image or folder {images}')
    return path.parent, [path.name]


def _find_model(model: str, checkpoint: str | None) -> tuple[Config, str]:
    if model.endswith('.py'):
        cfg = read_config(model)
        beside = Path(model).with_suffix('.pth')
        found = str(beside) if beside.is_file() else cfg.get('load_from')
    elif ModelHub.has(model):
        info = ModelHub.get(model)
        cfg, found = info.config, info.weights
    else:
        near = difflib.get_close_matches(model, ModelHub._models_dict)
        raise UserError(f'{model} is neither a config, which ends in .py, nor '
                        'the name of a model' +
                        (f': did you mean {some(near)}?' if near else ''))
    if not (checkpoint or found):
        raise UserError(f'no checkpoint of {model} is known: name one after '
                        'it')
    return cfg, checkpoint or found


def _classifier(cfg: Config, checkpoint: str, deploy: bool,
                top: int) -> tuple[list[str], Callable]:
    meta = load_checkpoint(checkpoint).get('meta') or {}
    trained = (meta.get('dataset_meta') or {}).get('classes')
    if trained:  # with --data there were other classes than the config's
        set_num_classes(cfg, len(trained))
    classes = class_names(cfg, meta)
    model = build_model(cfg)
    load_weights(model, checkpoint)
    if deploy:
        switch_loaded(model, checkpoint)
    model.to(get_device())
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = unwrap_dataset(loader.get('dataset') or {})
    # Images are read here, in the channels that the network takes.
    transforms = [t for t in dataset.pipeline
                  if type_name(t) != 'LoadImageFromFile']
    flag = (cv2.IMREAD_GRAYSCALE if image_channels(cfg) == 1
            else cv2.IMREAD_COLOR)
    with scope_of(cfg):
        pipeline = Compose([TRANSFORMS.build(t) for t in transforms])
    visualizer = UniversalVisualizer()

    def predict_one(path: Path, drawn: Path | None) -> Iterator[Row]:
        image = decode(path, flag)
        shape = image.shape[:2]
        with scope_of(cfg), torch.no_grad():
            batch = pseudo_collate([pipeline(dict(
                img=image.reshape(*shape, -1), img_path=str(path),
                img_shape=shape, ori_shape=shape))])
            sample, = model.test_step(batch)
        if drawn is not None:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            visualizer.visualize_cls(
                decode(path)[..., ::-1], sample, classes or None,
                draw_gt=False, out_file=str(_writable_name(drawn)))
        scores, labels = sample.pred_score.topk(
            min(top, len(sample.pred_score)))
        for score, label in zip(scores.tolist(), labels.tolist()):
            name = classes[label] if label < len(classes) else str(label)
            yield name, f'{score:.4f}'

    return ['class', 'score'], predict_one


def _writable_name(path: Path) -> Path:
    # OpenCV cannot write other formats, or not in colour.
    known = path.suffix.lower() in ('.jpg', '.jpeg', '.png')
    return path if known else path.with_name(f'{path.name}.png')


def _detector(cfg: Config, checkpoint: str, deploy: bool,
              top: int) -> tuple[list[str], Callable]:
    from mmdet.apis import DetInferencer
    # The inferencer only logs keys that do not fit; this refuses them.
    load_weights(build_model(cfg), checkpoint)
    # It looks for transforms by name, where new-style configs have classes.
    for transform in unwrap_dataset(cfg.test_dataloader.dataset).pipeline:
        kind = transform['type']
        if not isinstance(kind, str):
            transform['type'] = f'{kind.__module__}.{kind.__name__}'
    inferencer = DetInferencer(
        cfg, checkpoint, get_device(), show_progress=False)
    if deploy:
        switch_loaded(inferencer.model, checkpoint)
    classes = inferencer.model.dataset_meta['classes']

    def predict_one(path: Path, drawn: Path | None) -> Iterator[Row]:
        found = inferencer(
            str(path),
            no_save_vis=drawn is None,
            out_dir='' if drawn is None else str(drawn.parent))
        found = found['predictions'][0]
        boxes = sorted(
            zip(found['scores'], found['labels'], found['bboxes']),
            reverse=True)
        for score, label, box in boxes[:top]:
            corners = ', '.join(f'{x:.1f}' for x in box)
            yield str(classes[label]), f'{score:.4f}', corners
        if not boxes:
            yield 'nothing', '', ''

    return ['class', 'score', 'box (x1, y1, x2, y2)'], predict_one


def _segmentor(cfg: Config, checkpoint: str, deploy: bool,
               top: int) -> tuple[list[str], Callable]:
    from mmseg.apis import MMSegInferencer
    # The inferencer only logs keys that do not fit; this refuses them.
    meta = load_weights(build_model(cfg), checkpoint)
    trained = meta.get('dataset_meta') or {}
    inferencer = MMSegInferencer(
        cfg, checkpoint, trained.get('classes'), trained.get('palette'),
        device=get_device(), show_progress=False)
    if deploy:
        switch_loaded(inferencer.model, checkpoint)
    classes = inferencer.visualizer.dataset_meta['classes']

    def predict_one(path: Path, drawn: Path | None) -> Iterator[Row]:
        labels = inferencer(
            str(path),
            out_dir='' if drawn is None else str(drawn.parent))['predictions']
        found, counts = np.unique(labels, return_counts=True)
        for i in np.argsort(-counts)[:top]:
            yield (str(classes[found[i]]),
                   f'{100 * counts[i] / labels.size:.1f} %')

    return ['class', 'share of pixels'], predict_one


_PREDICTORS = dict(mmpretrain=_classifier, mmdet=_detector, mmseg=_segmentor)
