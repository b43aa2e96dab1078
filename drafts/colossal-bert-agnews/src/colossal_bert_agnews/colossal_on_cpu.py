"""What Colossal-AI 0.5.0 needs to train on CPUs, where upstream supports GPUs only.

Its parts are written against an accelerator, and it has one for CPUs, but some methods of it raise, and some places do
not ask it at all. `install` fills in what these lack, nothing else: on GPUs it is not called. Every shim is named in
`SHIMS`, and the tests leave out one at a time to see that training fails without it.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def random_numbers(accelerator: type) -> None:
    """Let dropout of tensor-parallel layers keep generators of its own.

    Upstream's `get_rng_state` hands `torch.get_rng_state` an argument that it does not take, and `manual_seed` raises.
    """
    accelerator.get_rng_state = lambda self, device=None: torch.get_rng_state()  # type: ignore[attr-defined]
    accelerator.manual_seed = lambda self, seed: torch.manual_seed(seed)  # type: ignore[attr-defined]


def pipeline_messages(_: type) -> None:
    """Let stages of a pipeline send each other tensors.

    Upstream asks a group for `name()`, which Gloo's does not have, to find out whether it is NCCL.
    """
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = lambda group: False


class _NoStream:
    """Stands in for a CUDA stream: on a CPU, everything happens in order anyway."""

    def wait_stream(self, other: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def zero(accelerator: type) -> None:
    """Let ZeRO share out optimizer state and gradients.

    Upstream makes CUDA streams for its messages and refuses parameters that are not on a GPU.
    """
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    accelerator.Stream = lambda self, *args, **kwargs: _NoStream()  # type: ignore[attr-defined]
    accelerator.current_stream = lambda self, device=None: _NoStream()  # type: ignore[attr-defined]
    accelerator.stream = lambda self, stream: contextlib.nullcontext()  # type: ignore[attr-defined]
    LowLevelZeroOptimizer._sanity_checks = lambda self: None


SHIMS: dict[str, Callable[[type], None]] = {
    "random_numbers": random_numbers,
    "pipeline_messages": pipeline_messages,
    "zero": zero,
}


def install(*, without: str | None = None) -> None:
    """Install all shims, once a process has made the CPU Colossal-AI's accelerator.

    Args:
        without: name of one that is left out, for tests.
    """
    from colossalai.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.name != "cpu":
        raise RuntimeError(f"shims for CPUs on an accelerator of type {accelerator.name}")
    for name, shim in SHIMS.items():
        if name != without:
            shim(type(accelerator))
