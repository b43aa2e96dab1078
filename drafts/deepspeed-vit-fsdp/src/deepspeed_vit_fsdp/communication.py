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
from trainyard_shared.tensors.zero import BYTES

from deepspeed_vit_fsdp.planning import Strategy

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


def predicted_bytes(num_parameters: int, strategy: Strategy, world_size: int, precision: str) -> int:
    """Predict what each process sends in a step without accumulation (Rajbhandari et al. 2020, section 7).

    Plain data parallel reduces gradients and gathers the sums: twice the parameters. ZeRO-3 and FSDP2 reduce gradients
    once to their owners, and gather parameters in the forward and again in the backward pass: three times. ZeRO-1 and 2
    could do with twice, gradients to their owners and new parameters to all; DeepSpeed 0.19.8 reduces gradients to all
    (`use_multi_rank_bucket_allreduce`, its default), which makes three.

    Args:
        num_parameters: of the whole model.
        strategy: how the state is shared out.
        world_size: processes.
        precision: of training.
    """
    width = BYTES[precision]
    if strategy.is_deepspeed:
        per_parameter = width * (2 if strategy.stage == 0 else 3)
    elif strategy.stage == 0:
        per_parameter = 2 * 4  # gradients of DDP are in fp32
    else:
        per_parameter = 2 * width + 4  # FSDP2 gathers in 16 bits, and reduces in fp32
    return round(per_parameter * num_parameters * (world_size - 1) / world_size)
