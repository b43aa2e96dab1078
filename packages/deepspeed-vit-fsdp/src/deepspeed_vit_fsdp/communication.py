"""Bytes that a step sends to other processes: counted at the collectives themselves, and predicted.

Counting does not ask DeepSpeed or PyTorch: both end in torch's c10d operators, which a dispatch mode sees, also those
that C++ starts in the middle of the backward pass.
"""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a process sends in a ring of N processes, as multiples of (N - 1) / N of the whole payload.
SENT = {
    "allreduce_": 2,
    "allreduce_coalesced_": 2,
    "_allgather_base_": 1,
    "allgather_": 1,
    "allgather_into_tensor_coalesced_": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_": 1,
    "reduce_scatter_tensor_coalesced_": 1,
    "reduce_": 1,
    "broadcast_": 1,
    "alltoall_base_": 1,
    "alltoall_": 1,
}


class CommunicationCounter(TorchDispatchMode):
    """Counts what is communicated while the block lasts.

    Attributes:
        payload: bytes of the whole tensors, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payload: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operator run, and note its tensors if it communicates."""
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            if name in SENT:
                # Of what is gathered or scattered one side is the whole and the other a share: the larger counts.
                sides = [sum(t.nbytes for t in tree_leaves(arg) if isinstance(t, torch.Tensor)) for arg in args]
                self.payload[name] += max(sides)
        return func(*args, **(kwargs or {}))

    def sent_bytes(self) -> int:
        """Return what each process sends in ring algorithms."""
        world_size = dist.get_world_size()
        return round(sum(SENT[name] * size for name, size in self.payload.items()) * (world_size - 1) / world_size)


def predicted_bytes(parameter_bytes: int, stage: int, world_size: int) -> int:
    """Predict what each process sends in a step without accumulation (Rajbhandari et al. 2020, section 7).

    Without sharing out parameters, gradients are reduced and something is gathered, either the gradients (data
    parallel) or the new parameters (ZeRO-1 and 2): twice the parameters. ZeRO-3 gathers them in the forward and again
    in the backward pass: three times.

    Args:
        parameter_bytes: of the whole model, in the precision of training.
        stage: of ZeRO, 0 to 3; DDP is as 0, FSDP2 as 3.
        world_size: processes.
    """
    return round((3 if stage == 3 else 2) * parameter_bytes * (world_size - 1) / world_size)
