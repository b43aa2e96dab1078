"""Activation checkpointing: forget what a segment computes on the way, and compute it again in the backward pass.

    fairscale   FairScale's checkpoint_wrapper: the backward pass of a segment starts a backward pass of its own
    torch       PyTorch's checkpoint with use_reentrant=False, its maintained successor: saved tensors are replaced by
                a promise to compute them again
    none        everything that the backward pass needs is kept (Chen et al., 2016, Training Deep Nets with Sublinear
                Memory Cost, has the idea)

Random numbers are the same the second time: both keep the state of the generators, so dropout drops the same units.
"""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairscale_turbofan_anomaly.model import Segment

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def apply(model: nn.Module, way: str) -> nn.Module:
    """Checkpoint every `Segment` of a model, in place, and return it; names of weights stay as they are.

    Args:
        model: built with the same way in its config, so that segments are chunks.
        way: fairscale, torch or none.
    """
    if way not in ("fairscale", "torch", "none"):
        raise ValueError(f"there is no way of checkpointing called {way!r}")
    if way == "none":
        return model
    for segment in [module for module in model.modules() if isinstance(module, Segment)]:
        if way == "fairscale":
            with quiet():
                from fairscale.nn.checkpoint import checkpoint_wrapper
            checkpoint_wrapper(segment)  # replaces the method `forward` of this object
        else:
            segment.forward = functools.partial(torch.utils.checkpoint.checkpoint, segment.forward, use_reentrant=False)
    return model


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made within the block, while they live; on any device, fused kernels included.

    Hooks on saved tensors would be quicker, but PyTorch's checkpointing uses them itself and hides from them what it
    computes again.

    Attributes:
        now: bytes alive.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns; the storage of a view is known already."""
        own = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in own or storage in self._known:
                continue
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, count: int) -> None:
        self.now -= count


def activation_bytes(model: nn.Module, windows: torch.Tensor, loss: Loss) -> int:
    """Measure the most bytes that a forward and backward pass have in use at a time.

    Counted is all that lives on top of weights, windows and gradients of weights, which are there before: activations
    kept or computed again, and their gradients.

    Args:
        model: plain or checkpointed, in training mode.
        windows: (B, T, S), on the device of the model.
        loss: of the model's output and the windows, a scalar.
    """
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    devices = [windows.device] if windows.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), LiveBytes() as live:
        loss(model(windows), windows).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return live.peak


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """FairScale is archived; it still imports names that torch has declared outdated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
