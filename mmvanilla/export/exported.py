# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""An exported file in its own runtime, as a model of the toolbox."""
import copy
import importlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..reparam.compare import Result
from ..reparam.samples import Samples
from ..utils.errors import UserError
from .formats import FORMATS, quiet, to_pixels
from .metadata import FORMAT_VERSION, normalization, parse
from .torch_programs import FromPixels

SCOPES = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg')


class Exported:
    """An exported file, opened: from (N, C, H, W) to a list of tensors."""

    def __init__(self, path: str | Path, format: str | None = None,
                 threads: int | None = None) -> None:
        """Open a file; pt2 and aoti use PyTorch's number of threads."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f'there is no file {path}')
        format = format or _format_of(path)
        if format not in FORMATS:
            raise UserError(f'format must be one of {", ".join(FORMATS)}, but '
                            f'got {format or path}')
        try:
            with quiet():
                self._run, properties = FORMATS[format].open(path, threads)
            self.metadata = parse(properties)
            self.path, self.shape = path, self.metadata['input_shape']
            runtime = ('torch', *FORMATS[format].packages)[-1]
            version = importlib.import_module(runtime).__version__
            self.title = (f'{format}, {self.metadata["precision"]}, in '
                          f'{runtime} {version}')
        except UserError:
            raise
        except Exception as e:  # each runtime has errors of its own
            raise UserError(
                f'{path} must be a file that mmvanilla exported as {format}, '
                f'but reading it fails: {type(e).__name__}') from e

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Outputs for normalized images, float32, (N, C, H, W)."""
        if self.metadata.get('input') == 'uint8':
            images = to_pixels(images, self.metadata)
        # A library of aoti reads the memory without checking the shape.
        if images.dim() != 4 or any(
                a not in (-1, b) for a, b in zip(self.shape, images.shape)):
            raise UserError(
                f'{self.path} needs an input of shape {self.shape}, where -1 '
                f'is any number, but got {list(images.shape)}: let the test '
                'pipeline that is exported resize or pad images to one size')
        found = [*map(torch.as_tensor, self._run(images.cpu().contiguous()))]
        if not all(x.isfinite().all() for x in found):
            raise UserError(f'{self.path} gives numbers that are not finite')
        return found


def _format_of(path: Path) -> str | None:
    if path.suffix.lower() == '.pt2' and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any('aotinductor' in name for name in file.namelist()):
                return 'aoti'
    return {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'pt2'}.get(
        path.suffix.lower())


def read_metadata(path: str | Path) -> dict[str, object]:
    """Read what an exported file tells of itself.

    Args:
        path (str | Path): The file. OpenVINO needs its weights beside it.

    Returns:
        dict[str, object]: What docs/en/exported_files.md describes.

    Raises:
        UserError: If it cannot be read as a file that mmvanilla wrote.
    """
    return Exported(path).metadata


def prepare(model: nn.Module, batch: dict,
            padding: dict | None = None) -> tuple[Tensor, object]:
    """A batch of one as a normalized image (1, C, H, W) and a data sample."""
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    samples = data.get('data_samples') or []
    x = pad(data['inputs'].float(), padding, samples)
    return x, samples[0] if samples else None


def pad(x: Tensor, padding: dict | None, samples: list) -> Tensor:
    """Pad images, right and bottom, to the size that a file takes."""
    if padding:
        sides = padding.get('size') or [
            side + -side % padding['divisor'] for side in x.shape[2:]]
        bottom, right = (max(0, a - b) for a, b in zip(sides, x.shape[2:]))
        x = F.pad(x, (0, right, 0, bottom), value=padding['value'])
        for sample in samples:  # mmseg cuts it off again
            _, r, _, b = sample.get('img_padding_size', (0, 0, 0, 0))
            sample.set_metainfo(dict(
                img_padding_size=(0, right + r, 0, bottom + b)))
    return x


def scope_of_file(path: str | Path, metadata: dict) -> str:
    """The toolbox whose model a file replaces."""
    version = metadata.get('format_version', 1)
    task = metadata.get('task', 'a network')
    if version != FORMAT_VERSION or task not in SCOPES:
        raise UserError(
            f'{path} is for {task}, with metadata of version {version}, but '
            f'must be for {" or ".join(SCOPES)}, with version '
            f'{FORMAT_VERSION}: export it again')
    return SCOPES[task]


class ExportedModel(BaseModel):
    """An exported file as a model of the toolbox, to test and to predict."""

    def __init__(self, file: str | Path | Exported,
                 data_preprocessor: dict | nn.Module | None = None,
                 threads: int | None = None) -> None:
        super().__init__(data_preprocessor)
        self.run = file if isinstance(file, Exported) else Exported(
            file, threads=threads)
        path, meta = self.run.path, self.run.metadata
        self.scope = scope_of_file(path, meta)
        for key, value in normalization(
                self.data_preprocessor, len(meta['mean'])).items():
            if value != meta[key]:
                raise UserError(f'{path} was exported with {key} {meta[key]}, '
                                f'but the data preprocessor has {value}')

    def forward(self, inputs: Tensor, data_samples: list,
                mode: str = 'predict') -> list:
        """From normalized images to data samples with predictions."""
        meta = self.run.metadata
        outputs = self.run(pad(inputs, meta['padding'], data_samples))
        if self.scope == 'mmdet':
            outputs = dict(zip(meta['outputs'], outputs))
            sample, = data_samples
            sample.pred_instances = _instances(sample, meta, **outputs)
        elif self.scope == 'mmseg':
            from mmseg.models import BaseSegmentor
            # What the function needs of a segmentor.
            self.align_corners = meta['align_corners']
            self.decode_head = SimpleNamespace(threshold=meta['threshold'])
            BaseSegmentor.postprocess_result(self, outputs[0], data_samples)
        else:
            for sample, logits in zip(data_samples, outputs[0]):
                sample.set_pred_score(logits.softmax(0))
                sample.set_pred_label(logits.argmax(0, keepdim=True))
        return data_samples


def _instances(sample, metadata: dict, boxes: Tensor, scores: Tensor,
               labels: Tensor, masks: Tensor | None = None) -> InstanceData:
    """Detections in the original image."""
    scale = boxes.new_tensor(sample.get('scale_factor', (1, 1))).repeat(2)
    boxes = boxes / scale
    found = InstanceData(bboxes=boxes, scores=scores, labels=labels.long())
    if masks is not None:
        from mmdet.models import FCNMaskHead
        head = FCNMaskHead(0, in_channels=1, conv_out_channels=1,
                           class_agnostic=True)
        head.predict_by_feat(
            [masks[:, None].logit()], [found],
            [dict(ori_shape=sample.ori_shape[:2], scale_factor=(1, 1))],
            SimpleNamespace(mask_thr_binary=metadata['mask_thr_binary']),
            rescale=True)
    # As the toolbox clips: to the image as its pipeline makes it, which may
    # have padding, and not to what is added to that.
    limit = boxes.new_tensor(sample.img_shape[1::-1]).repeat(2) / scale
    found.bboxes = boxes.clamp(torch.zeros_like(limit), limit)
    return found[(boxes <= limit)[:, :2].all(1)]


class Results:
    """Results of a model and of its exported file, for ``compare``."""

    def __init__(self, cfg: Config, model: nn.Module, network: nn.Module,
                 run: Exported, samples: Samples) -> None:
        self.model, self.run = model, run
        self.names, self.predicts = network.output_names, network.predicts
        self.models = (model, ExportedModel(run, model.data_preprocessor)) if (
            self.predicts) else (network, run)
        self.count, self.evaluators = len(samples.batches), []
        if self.predicts and samples.whole and cfg.get('val_evaluator'):
            dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
            for _ in range(2):
                evaluator = Evaluator(copy.deepcopy(cfg.val_evaluator))
                evaluator.dataset_meta = dataset.metainfo
                self.evaluators.append(evaluator)

    def __call__(self, i: int, batch: dict) -> Result:
        """What the model (0) or the file (1) computes for a batch of one."""
        meta = self.run.metadata
        x, sample = prepare(self.model, batch, meta['padding'])
        if meta['input'] == 'uint8' and 'img_shape' in (sample or ()):
            # There, padding is of whole pixels.
            pixels = FromPixels(nn.Identity(), meta)(to_pixels(x, meta))
            h, w = sample.img_shape[:2]
            x[..., h:, :], x[..., w:] = pixels[..., h:, :], pixels[..., w:]
        if not self.predicts:
            tensors = dict(zip(self.names, self.models[i](x)))
            return Result(tensors, DataSample().set_pred_label(
                tensors['logits'].argmax(1)) if 'logits' in tensors else None)
        own, size = None, tuple(x.shape[2:])
        if self.evaluators and sample.img_shape[:2] != size:
            # Metrics are of images as the toolbox pads them.
            own = self.models[i].test_step(copy.deepcopy(batch))
        sample.set_metainfo(dict(img_shape=size, pad_shape=size))
        found, = self.models[i](x, [sample], mode='predict')
        if self.evaluators:
            self.evaluators[i].process(own or [found], batch)
        # In lower precisions only the mIoU is judged.
        exact = 'seg_logits' in found and meta['precision'] == 'fp32'
        return Result(
            dict(logits=found.seg_logits.data) if exact else {}, found)

    def metrics(self) -> dict[str, tuple[float, float]]:
        """The config's metrics of both, where all samples were compared."""
        before, after = [
            x.evaluate(self.count) for x in self.evaluators] or ({}, {})
        return {name: (before[name], after[name]) for name in before}
