# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class LabelSmoothBCELoss(nn.Module):
    """Binary cross entropy with logits, mean over samples **and** classes.

    mmpretrain's sigmoid cross entropy is the mean over samples only, so its
    value is larger by the factor K, the number of classes. Labels are
    smoothed to ``1 - s + s / K`` and ``s / K`` (the recipe of VanillaNet,
    arXiv 2305.12972, section 4). Smoothing after mixup and cutmix, as here,
    gives the same targets as before them, since both are linear.

    Args:
        label_smooth_val (float): s, from 0 to below 1. Defaults to 0.
        loss_weight (float): Factor of the loss. Defaults to 1.

    Raises:
        ValueError: If ``label_smooth_val`` is out of range.
    """

    def __init__(self,
                 label_smooth_val: float = 0.0,
                 loss_weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= label_smooth_val < 1:
            raise ValueError('label_smooth_val must be from 0 to below 1, '
                             f'but got {label_smooth_val}')
        self.label_smooth_val = label_smooth_val
        self.loss_weight = loss_weight

    def forward(self, cls_score: Tensor, label: Tensor,
                avg_factor: float | None = None) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits, (N, K).
            label (Tensor): Class indices, (N, ), or scores, (N, K).
            avg_factor (float, optional): Divisor instead of N.
                Defaults to None, which means N.

        Returns:
            Tensor: The loss, a scalar.
        """
        num_samples, num_classes = cls_score.shape
        # In half precision the sum of 128 x 1000 terms is infinite.
        cls_score = cls_score.to(
            torch.promote_types(cls_score.dtype, torch.float32))
        if label.ndim == 1:
            label = F.one_hot(label, num_classes)
        target = label.to(cls_score.dtype) * (1 - self.label_smooth_val)
        target = target + self.label_smooth_val / num_classes
        loss = F.binary_cross_entropy_with_logits(
            cls_score, target, reduction='sum')
        avg_factor = num_samples if avg_factor is None else avg_factor
        return self.loss_weight * loss / (avg_factor * num_classes)
