"""An exponential moving average of the weights, of which each process keeps as much as ZeRO lets it have.

Below stage 3 every process has whole parameters, and the averages on all processes are equal. Under stage 3 a process
has its slice of each parameter, `ds_tensor`, and averages just that: to average is done number by number, so the
average of the slices is the slice of the average. The memory is shared out as ZeRO-3 shares out the parameters.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows the parameters that are trained and the statistics of batch normalisation.

    Args:
        network: the module the engine trains, sharded or not.
        decay: of the average; in the first steps less, so that it soon forgets the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.averages = [tensor.detach().clone() for tensor in self._held()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after an optimizer step; `step` counts from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, tensor in zip(self.averages, self._held(), strict=True):
            average.lerp_(tensor, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network hold the averages within the block, and its own weights again after it."""
        own = [tensor.detach().clone() for tensor in self._held()]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(own)

    def state(self) -> list[Tensor]:
        """What a checkpoint of this process has to hold."""
        return self.averages

    def load_state(self, state: list[Tensor]) -> None:
        """Go on from what `state` gave."""
        for average, tensor in zip(self.averages, state, strict=True):
            average.copy_(tensor)

    def _held(self) -> list[Tensor]:
        trained = [getattr(p, "ds_tensor", p) for p in self.network.parameters() if p.requires_grad]
        return [*(t.data for t in trained), *(b for b in self.network.buffers() if b.is_floating_point())]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._held(), values, strict=True):
            tensor.copy_(value)
