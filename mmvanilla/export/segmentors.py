# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""mmseg's segmentors, from images to label maps."""
from torch import Tensor, nn

from ..utils.errors import UserError


class Segmentor(nn.Module):
    """A segmentor with any decode head of mmseg."""

    output_names = ('logits', 'labels')
    predicts = True  # the outputs are the toolbox's predictions

    def __init__(self, model: nn.Module):
        super().__init__()
        if not hasattr(model, 'encode_decode'):
            raise UserError(f'a {type(model).__name__} cannot be exported '
                            'whole, only an EncoderDecoder of mmseg; use '
                            '--part backbone')
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise UserError(
                f"test_cfg.mode is '{mode}', but a segmentor is exported for "
                'whole images; use --cfg-options model.test_cfg.mode=whole')
        self.model = model

    def settings(self) -> dict[str, object]:
        """What the file's metadata say about the outputs."""
        return dict(outputs=list(self.output_names))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> logits (N, classes, H, W) and labels (N, H, W).

        A runtime can compute either of them without the other.
        """
        size = tuple(images.shape[2:])
        logits = self.model.encode_decode(
            images, [dict(img_shape=size, ori_shape=size, pad_shape=size)])
        if logits.shape[1] > 1:
            return logits, logits.argmax(1)
        threshold = self.model.decode_head.threshold
        return logits, (logits[:, 0].sigmoid() > threshold).long()
