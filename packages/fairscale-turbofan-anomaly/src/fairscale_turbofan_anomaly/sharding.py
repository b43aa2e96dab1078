"""Three ways to share out a training step among processes: the same few operations, each in its own words.

    oss              FairScale OSS + ShardedDataParallel: optimizer state and reduced gradients sharded (ZeRO-1 and 2)
    ddp              PyTorch DistributedDataParallel: nothing sharded
    zero_redundancy  PyTorch ZeroRedundancyOptimizer + DistributedDataParallel: optimizer state; succeeds oss

A checkpoint holds whole, unsharded state, so that a run can go on in another way or with another number of processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.tensors import memory

from fairscale_turbofan_anomaly.checkpointing import quiet
from fairscale_turbofan_anomaly.config import TrainConfig

State = dict[str, Any]


class Oss:
    """FairScale's sharded data parallel: each process steps, and keeps moments for, its own share of the parameters.

    After the backward pass a gradient is reduced to the process that owns its parameter, and freed on the others.

    Attributes:
        parallel: call it for a forward pass whose backward pass communicates.
        optimizer: AdamW, sharded or not.
    """

    parallel: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        with quiet():
            from fairscale.nn.data_parallel import ShardedDataParallel
            from fairscale.optim import OSS
        self.optimizer = OSS(model.parameters(), optim=torch.optim.AdamW, **adamw_settings(config))
        # reduce_buffer_size=0: with buckets, FairScale reduces views that `zero_grad` of torch >= 2, which sets
        # gradients to None, has cut off. Training would go wrong on every process alike, and without an error.
        self.parallel = ShardedDataParallel(model, self.optimizer, reduce_buffer_size=0)

    def optimizer_state(self) -> State | None:
        """Collect the shares on rank 0, which gets the whole state, one process after the other."""
        self.optimizer.consolidate_state_dict(recipient_rank=0)
        return self.optimizer.state_dict() if dist.get_rank() == 0 else None

    def own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds this process's share of the state."""
        return self.optimizer.optim

    def held_bytes(self) -> dict[str, int]:
        """Measure the bytes of parameters, gradients and optimizer state on this process."""
        parameters = list(self.parallel.parameters())
        return {
            "parameters": memory.tensor_bytes(parameters),
            "gradients": memory.tensor_bytes(p.grad for p in parameters if p.grad is not None),
            "optimizer": memory.tensor_bytes(memory.optimizer_tensors(self.own_optimizer())),
        }

    def predicted_bytes(self) -> dict[str, int]:
        """Predict the same from what FairScale says of who owns which parameter."""
        whole = list(self.parallel.parameters())
        own = [p for group in self.optimizer.partition_parameters()[dist.get_rank()] for p in group["params"]]
        return {"parameters": _bytes(whole), "gradients": _bytes(own), "optimizer": _adamw_bytes(own)}


class Ddp(Oss):
    """Plain data parallel: everything on every process, gradients averaged during the backward pass."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.parallel = _data_parallel(model, device)
        self.optimizer = torch.optim.AdamW(model.parameters(), **adamw_settings(config))

    def optimizer_state(self) -> State | None:
        """All processes hold the same."""
        return self.optimizer.state_dict()

    def own_optimizer(self) -> torch.optim.Optimizer:
        """It holds everything."""
        return self.optimizer

    def predicted_bytes(self) -> dict[str, int]:
        """Everything, whole."""
        whole = list(self.parallel.parameters())
        return {"parameters": _bytes(whole), "gradients": _bytes(whole), "optimizer": _adamw_bytes(whole)}


class ZeroRedundancy(Ddp):
    """PyTorch's answer to OSS: moments only for the own share of the parameters, then a broadcast of the result."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        self.parallel = _data_parallel(model, device)
        self.optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.AdamW, **adamw_settings(config)
        )

    def optimizer_state(self) -> State | None:
        """Collect the shares on rank 0."""
        self.optimizer.consolidate_state_dict(to=0)
        return self.optimizer.state_dict() if dist.get_rank() == 0 else None

    def own_optimizer(self) -> torch.optim.Optimizer:
        """The part that belongs to this process."""
        return self.optimizer.optim

    def predicted_bytes(self) -> dict[str, int]:
        """An even share of the moments: PyTorch does not say beforehand who gets which parameter."""
        whole = super().predicted_bytes()
        return whole | {"optimizer": whole["optimizer"] // dist.get_world_size()}


WAYS: dict[str, type[Oss]] = {"oss": Oss, "ddp": Ddp, "zero_redundancy": ZeroRedundancy}


def adamw_settings(config: TrainConfig) -> dict[str, Any]:
    """AdamW (Loshchilov & Hutter, 2019)."""
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": (0.9, 0.99)}


def _data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def _bytes(parameters: list[Any]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _adamw_bytes(parameters: list[Any]) -> int:
    # Two moments for each number, and a step counter of 4 bytes for each tensor.
    return 2 * _bytes(parameters) + 4 * len(parameters)
