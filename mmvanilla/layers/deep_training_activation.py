# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DeepTrainingActivation(nn.Module):
    """The activation that becomes the identity during training.

    ``A'(x) = (1 - lam) A(x) + lam x`` (VanillaNet, arXiv 2305.12972,
    equation 1). At ``lam = 0`` it is A; at ``lam = 1`` it is the identity,
    and the convolutions on either side of it merge into one.

    ``lam`` is a Python float and not a buffer: EMA, ``half()`` and DDP, which
    average, cast or broadcast buffers, must not change it. It is still an
    entry of the state dict, a float64 scalar, so that a checkpoint holds the
    lambda that it was trained with. A state dict without that entry loads as
    ``lam = 1``, the default.

    Args:
        act_cfg (dict): Config of A. Defaults to ``dict(type='ReLU')``.
        inplace (bool): Whether to overwrite the input, if A is ReLU; other
            activations ignore it. Defaults to False.
    """

    def __init__(self,
                 act_cfg: dict = dict(type='ReLU'),
                 inplace: bool = False) -> None:
        super().__init__()
        # A must not overwrite x, which the second term needs.
        cfg = {k: v for k, v in act_cfg.items() if k != 'inplace'}
        self.act = build_activation_layer(cfg)
        # For ReLU, A' is leaky_relu with slope lam: one pass over memory.
        self.is_relu = type(self.act) is nn.ReLU
        self.inplace = inplace
        self._lam = 1.0

    @property
    def lam(self) -> float:
        """float: Weight of the identity, from 0 to 1. Defaults to 1.

        Setting another value raises ``ValueError``.
        """
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        value = float(value)
        if not 0 <= value <= 1:
            raise ValueError(f'lambda must be from 0 to 1, but got {value}')
        self._lam = value

    def forward(self, x: Tensor) -> Tensor:
        """Apply A'. Takes and returns a tensor of any shape."""
        if self.is_relu:
            return F.leaky_relu(x, self._lam, self.inplace)
        return torch.lerp(self.act(x), x, self._lam)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + 'lam'] = torch.tensor(
            self._lam, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        key = prefix + 'lam'
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        try:
            self.lam = state_dict.get(key, 1.0)
        except (ValueError, TypeError, RuntimeError) as e:
            error_msgs.append(f'cannot load "{key}": {e}')

    def extra_repr(self) -> str:
        """Show lambda where the module is printed."""
        return f'lam={self._lam:g}, inplace={self.inplace}'
