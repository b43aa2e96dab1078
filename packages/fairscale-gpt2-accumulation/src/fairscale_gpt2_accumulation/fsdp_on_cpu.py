"""Let FairScale's FullyShardedDataParallel run without a GPU, for demonstrations and tests.

It was written for CUDA: it asks for a GPU, overlaps communication on CUDA streams and uses collectives that only NCCL
has had. On a CPU there is nothing to overlap, so streams that do nothing are enough. Its results are those of plain
data parallel training, as the tests show. Only FairScale's own module sees the stand-ins; torch stays as it is.
"""

import contextlib
import types
from typing import Any

import torch


class _Stream:
    """A stream on which all work is done already."""

    def wait_stream(self, _other: object) -> None: ...

    def synchronize(self) -> None: ...


class _TorchWithStreams:
    """torch as FairScale's module sees it: with a `cuda` that is there and does nothing."""

    def __init__(self) -> None:
        stream = _Stream()
        self.cuda = types.SimpleNamespace(
            is_available=lambda: True,
            Stream=lambda *_, **__: stream,
            current_stream=lambda *_: stream,
            stream=lambda _: contextlib.nullcontext(),
            synchronize=lambda *_: None,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def install() -> None:
    """Put the stand-ins in place; call it before the first FullyShardedDataParallel is made on a CPU."""
    from fairscale.internal import reduce_scatter_bucketer
    from fairscale.nn.data_parallel import fully_sharded_data_parallel as fsdp

    if isinstance(fsdp.torch, _TorchWithStreams):
        return
    fsdp.torch = _TorchWithStreams()
    # Gloo wants a list of tensors, not one flat tensor.
    reduce_scatter_bucketer.enable_nccl_base_collectives = fsdp.enable_nccl_base_collectives = False
    record_stream = torch.Tensor.record_stream
    torch.Tensor.record_stream = lambda tensor, stream: (
        None if tensor.device.type == "cpu" else record_stream(tensor, stream)
    )
