# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from collections.abc import Sequence

from torch import Tensor, nn

from .series_activation import SeriesActivation


class SeriesActivationList(nn.ModuleList):
    """Series activations for a block that calls one activation repeatedly.

    A block of ResNet holds one ReLU and calls it after each norm, with maps
    of different widths. Its series are as many as its calls: each call takes
    the next, and the block's own call starts over with the first.

    Args:
        acts (Sequence[SeriesActivation]): One for each call, in order.
        block (nn.Module): The block that calls them.
    """

    def __init__(self, acts: Sequence[SeriesActivation],
                 block: nn.Module) -> None:
        super().__init__(acts)
        self.next = 0
        # Where a call before broke off, the count would be out of step.
        block.register_forward_pre_hook(self._start_over)

    def _start_over(self, block, args) -> None:
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        act = self[self.next]
        self.next = (self.next + 1) % len(self)
        return act(x)
