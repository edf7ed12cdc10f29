# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""An exported file in its own runtime, and its results to compare."""
import copy
import warnings
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..reparam.compare import Result
from ..reparam.samples import Samples
from ..utils.errors import UserError
from .formats import FORMATS


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
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self._run, self.metadata = FORMATS[format].open(path, threads)
            self.path, self.shape = path, self.metadata['input_shape']
        except UserError:
            raise
        except Exception as e:  # each runtime has errors of its own
            raise UserError(
                f'{path} must be a file that mmvanilla exported as {format}, '
                f'but reading it fails: {type(e).__name__}') from e

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Outputs for float32 images of the metadata's ``input_shape``."""
        # A library of aoti reads the memory without checking the shape.
        if images.dim() != 4 or any(
                a not in (-1, b) for a, b in zip(self.shape, images.shape)):
            raise UserError(
                f'{self.path} needs an input of shape {self.shape}, where -1 '
                f'is any number, but got {list(images.shape)}')
        return [*map(torch.as_tensor, self._run(images.contiguous()))]


def _format_of(path: Path) -> str | None:
    if path.suffix == '.pt2' and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any('aotinductor' in name for name in file.namelist()):
                return 'aoti'
    return {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'pt2'}.get(
        path.suffix)


def read_metadata(path: str | Path,
                  format: str | None = None) -> dict[str, object]:
    """Read what an exported file tells of itself.

    Args:
        path (str | Path): The file. OpenVINO needs its weights beside it.
        format (str, optional): 'onnx', 'openvino', 'pt2' or 'aoti'. Defaults
            to None: what the file's name and content show.

    Returns:
        dict[str, object]: ``labels``, ``mean`` and ``std`` (of pixels from 0
        to 255), ``channel_order``, ``input_size`` (height and width, in
        pixels), ``input_shape`` ([N, C, H, W], -1 where any number is taken),
        ``part``, ``precision``, ``version`` and, of a detector, the settings
        of its ``test_cfg``.

    Raises:
        UserError: If the format is unknown, or the file cannot be read as a
            file of that format that mmvanilla wrote.
    """
    return Exported(path, format).metadata


def prepare(model: nn.Module, batch: dict) -> tuple[Tensor, object]:
    """A batch of one as a normalized image (1, C, H, W) and a data sample."""
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    return data['inputs'].float(), (data.get('data_samples') or [None])[0]


def fit(x: Tensor, size: tuple[int, int] | None) -> Tensor | None:
    """Pad an image, right and bottom, to a size; None if it is larger."""
    if size is None:
        return x
    bottom, right = (a - b for a, b in zip(size, x.shape[2:]))
    return F.pad(x, (0, right, 0, bottom)) if min(bottom, right) >= 0 else None


class Results:
    """Results of a model and of its exported file, for ``compare``."""

    def __init__(self, cfg: Config, model: nn.Module, network: nn.Module,
                 run: Exported, size: tuple[int, int] | None,
                 samples: Samples) -> None:
        self.model, self.network = model, network
        self.run, self.size = run, size
        self.count, self.evaluators = len(samples.batches), []
        if network.predicts and samples.whole and cfg.get('val_evaluator'):
            dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
            for _ in range(2):
                evaluator = Evaluator(copy.deepcopy(cfg.val_evaluator))
                evaluator.dataset_meta = dataset.metainfo
                self.evaluators.append(evaluator)

    def reference(self, batch: dict) -> Result:
        """What the toolbox computes for a batch of one."""
        x, sample = prepare(self.model, batch)
        x = fit(x, self.size)
        if not self.network.predicts:
            return self._result(self.network(x))
        if self.evaluators:
            self.evaluators[0].process(
                self.model.test_step(copy.deepcopy(batch)), batch)
        # A sample without annotations, and of the size of the input.
        names = 'img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'
        found, = self.model.predict(x, [type(sample)(metainfo=dict.fromkeys(
            names, tuple(x.shape[2:])) | dict(scale_factor=(1.0, 1.0)))])
        if hasattr(self.model, 'decode_head'):
            return self._label_map(found.seg_logits.data[None], found)
        return Result({}, found)

    def candidate(self, batch: dict) -> Result:
        """The same of the exported file."""
        x, sample = prepare(self.model, batch)
        size, x = x.shape[2:], fit(x, self.size)
        outputs = self.run(x)
        if not self.network.predicts:
            return self._result(outputs)
        outputs = dict(zip(self.network.output_names, outputs))
        if hasattr(self.model, 'decode_head'):
            logits = outputs['logits'][..., :size[0], :size[1]]
            scaled, = self.model.postprocess_result(logits, [sample.clone()])
            found = type(sample)(
                pred_sem_seg=PixelData(data=outputs['labels'].long()))
            result = self._label_map(outputs['logits'], found)
        else:
            scaled = sample.clone()
            scaled.pred_instances = self._instances(
                outputs, sample.ori_shape[:2],
                sample.get('scale_factor', (1, 1)))
            result = Result({}, type(sample)(
                pred_instances=self._instances(outputs, x.shape[2:])))
        if self.evaluators:
            self.evaluators[1].process([scaled], batch)
        return result

    def _result(self, outputs: list[Tensor]) -> Result:
        tensors = dict(zip(self.network.output_names, outputs))
        return Result(tensors, DataSample().set_pred_label(
            tensors['logits'].argmax(1)) if 'logits' in tensors else None)

    def _label_map(self, logits: Tensor, found) -> Result:
        # In lower precisions only the mIoU is judged.
        exact = self.run.metadata['precision'] == 'fp32'
        return Result(dict(logits=logits) if exact else {}, found)

    def _instances(self, outputs: dict[str, Tensor], size: tuple[int, int],
                   scale=(1, 1)) -> InstanceData:
        """Detections in an image of a size, ``scale`` times smaller."""
        boxes = outputs['boxes'] / outputs['boxes'].new_tensor(scale).repeat(2)
        found = InstanceData(
            scores=outputs['scores'], labels=outputs['labels'].long())
        if 'masks' in outputs:
            found.masks = paste_masks(outputs['masks'], boxes, size,
                                      self.network.test_cfg.mask_thr_binary)
        limit = boxes.new_tensor([size[1], size[0]] * 2)
        found.bboxes = boxes.clamp(torch.zeros_like(limit), limit)
        return found

    def metrics(self) -> dict[str, tuple[float, float]]:
        """The config's metrics of both, where all samples were compared."""
        if not self.evaluators:
            return {}
        before, after = (x.evaluate(self.count) for x in self.evaluators)
        return {name: (before[name], after[name]) for name in before}


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int],
                threshold: float) -> Tensor:
    """Resize masks over boxes, (D, h, w), to masks over the image, bool."""
    grids = []
    for axis, side in ((0, size[1]), (1, size[0])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        centre = torch.arange(side, device=boxes.device) + 0.5
        grids.append((centre - low) / (high - low) * 2 - 1)
    x, y = grids
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)
    pasted = F.grid_sample(masks[:, None], grid, align_corners=False)
    return pasted[:, 0] >= threshold
