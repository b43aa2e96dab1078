"""Five ways to share a training step among processes, side by side: the same few operations, each in its own words.

    oss              FairScale OSS + ShardedDataParallel: optimizer state and reduced gradients sharded (ZeRO-1 and 2)
    fairscale_fsdp   FairScale FullyShardedDataParallel: parameters as well (ZeRO-3)
    ddp              PyTorch DistributedDataParallel: nothing sharded
    zero_redundancy  PyTorch ZeroRedundancyOptimizer + DistributedDataParallel: optimizer state; succeeds oss
    fsdp2            PyTorch fully_shard: parameters, gradients and optimizer state; succeeds fairscale_fsdp

A checkpoint holds whole, unsharded state, so that a run can go on with another number of processes.
"""

import abc
import contextlib
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors import memory

from fairscale_cifar_amp.config import TrainConfig
from fairscale_cifar_amp.model import SmallCNN

State = dict[str, Any]


class Sharding(abc.ABC):
    """A model and its optimizer, spread over the processes.

    Attributes:
        parallel: call it for a forward pass whose backward pass communicates.
        optimizer: SGD, sharded or not.
        scaler: of the loss in fp16; does nothing otherwise.
    """

    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @abc.abstractmethod
    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        """Spread a model, which lies on the device whole, over the processes; all processes call it."""

    def no_sync(self) -> contextlib.AbstractContextManager:
        """Within it, gradients of a micro-batch only add up on each process."""
        return self.parallel.no_sync()

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad()

    def weights(self) -> State:
        """Return the whole state dict of the model, on every process. All processes call it."""
        return self.parallel.module.state_dict()

    def load_weights(self, weights: State) -> None:
        """Take over the whole state dict of a model. All processes call it."""
        self.parallel.module.load_state_dict(weights)

    @abc.abstractmethod
    def optimizer_state(self) -> State | None:
        """Return the whole state of the optimizer on rank 0. All processes call it."""

    def load_optimizer_state(self, state: State) -> None:
        """Take this process's share of the whole state of the optimizer. All processes call it."""
        self.optimizer.load_state_dict(state)

    def owned_bytes(self, whole: int) -> int:
        """Return the bytes of the parameters whose updates this process computes, of `whole` bytes in all."""
        return whole // dist.get_world_size()

    def held_bytes(self) -> dict[str, int]:
        """Measure the bytes of parameters, gradients and optimizer state on this process."""
        parameters = list(self.parallel.parameters())
        return {
            "parameters": memory.tensor_bytes(map(_local, parameters)),
            "gradients": memory.tensor_bytes(_local(p.grad) for p in parameters if p.grad is not None),
            "optimizer": memory.tensor_bytes(map(_local, memory.optimizer_tensors(self._own_optimizer()))),
        }

    def _own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds this process's share of the state."""
        return self.optimizer


class Oss(Sharding):
    """FairScale's sharded data parallel: each process steps, and keeps momentum for, its own share of the parameters.

    After the backward pass a gradient is reduced to the process that owns its parameter, and freed on the others.
    """

    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        with quiet():
            from fairscale.nn.data_parallel import ShardedDataParallel
            from fairscale.optim import OSS
        self.optimizer = OSS(model.parameters(), optim=torch.optim.SGD, **sgd_settings(config))
        # reduce_buffer_size=0: with buckets, FairScale reduces views that `zero_grad` of torch >= 2, which sets
        # gradients to None, has cut off. Training would go wrong on every process alike, and without an error.
        self.parallel = ShardedDataParallel(model, self.optimizer, reduce_buffer_size=0)
        self.scaler = sharded_scaler(config, device)

    def optimizer_state(self) -> State | None:
        """Collect the shares on rank 0, one process after the other."""
        self.optimizer.consolidate_state_dict(recipient_rank=0)
        return self.optimizer.state_dict() if dist.get_rank() == 0 else None

    def owned_bytes(self, whole: int) -> int:
        """Whole parameters are shared out, so that shares differ; FairScale says who gets which."""
        own = self.optimizer.partition_parameters()[dist.get_rank()]
        return sum(p.numel() * p.element_size() for group in own for p in group["params"])

    def _own_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optim


class FairScaleFsdp(Sharding):
    """FairScale's FullyShardedDataParallel: each process keeps a slice of every layer's flattened parameters.

    A layer's slices are gathered right before it computes, and its gradient is reduced slice by slice.
    """

    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        if dist.get_world_size() == 1:
            raise UsageError(
                "error: --sharding fairscale_fsdp: FairScale cannot collect the state of a single process for a "
                "checkpoint; use --nproc 2 or more, or --sharding fsdp2"
            )
        with quiet():
            from fairscale.nn.data_parallel import FullyShardedDataParallel

            from fairscale_cifar_amp import fsdp_on_cpu
        if device.type == "cpu":
            fsdp_on_cpu.install()
        # bucket_cap_mb=0: the default buffer of 25 MB for gradients on their way is larger than this network.
        settings = {"compute_device": device, "bucket_cap_mb": 0}
        for i, block in enumerate(model.blocks):
            model.blocks[i] = FullyShardedDataParallel(block, **settings)
        self.parallel = FullyShardedDataParallel(model, **settings)
        self.optimizer = torch.optim.SGD(self.parallel.parameters(), **sgd_settings(config))
        self.scaler = sharded_scaler(config, device)

    def weights(self) -> State:
        """Gather all slices."""
        return self.parallel.state_dict()

    def load_weights(self, weights: State) -> None:
        """Keep this process's slices."""
        self.parallel.load_state_dict(weights)

    def optimizer_state(self) -> State | None:
        """Gather all slices on rank 0."""
        return self.parallel.gather_full_optim_state_dict(self.optimizer)

    def load_optimizer_state(self, state: State) -> None:
        """Keep this process's slices."""
        self.optimizer.load_state_dict(self.parallel.get_shard_from_optim_state_dict(state))


class Ddp(Sharding):
    """Plain data parallel: everything on every process, gradients averaged during the backward pass."""

    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        self.parallel = data_parallel(model, device)
        self.optimizer = torch.optim.SGD(model.parameters(), **sgd_settings(config))
        # Gradients are averaged before they are looked at, so all processes skip the same steps by themselves.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def zero_grad(self) -> None:
        """Keep the gradients as views into DDP's buckets."""
        self.optimizer.zero_grad(set_to_none=False)

    def optimizer_state(self) -> State | None:
        """All processes hold the same."""
        return self.optimizer.state_dict()


class ZeroRedundancy(Ddp):
    """PyTorch's answer to OSS: momentum only for the own share of the parameters, then a broadcast of the result."""

    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        self.parallel = data_parallel(model, device)
        self.optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.SGD, **sgd_settings(config)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def optimizer_state(self) -> State | None:
        """Collect the shares on rank 0."""
        self.optimizer.consolidate_state_dict(to=0)
        return self.optimizer.state_dict() if dist.get_rank() == 0 else None

    def _own_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optim


class Fsdp2(Sharding):
    """PyTorch's answer to FullyShardedDataParallel: every parameter becomes a tensor distributed over the processes."""

    def __init__(self, model: SmallCNN, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model.to(
            memory_format=torch.contiguous_format
        )  # it takes no others; images alone make convolutions channels_last
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        self.parallel = fully_shard(model, mesh=mesh)
        self.optimizer = torch.optim.SGD(model.parameters(), **sgd_settings(config))
        self.scaler = sharded_scaler(config, device)

    @contextlib.contextmanager
    def no_sync(self) -> Any:
        """What a context manager is elsewhere is a switch here."""
        self.parallel.set_requires_gradient_sync(False)
        yield
        self.parallel.set_requires_gradient_sync(True)

    def weights(self) -> State:
        """Gather all slices."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(self.parallel, options=StateDictOptions(full_state_dict=True))

    def load_weights(self, weights: State) -> None:
        """Keep this process's slices."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(self.parallel, weights, options=StateDictOptions(full_state_dict=True))

    def optimizer_state(self) -> State | None:
        """Gather all slices."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True)
        return get_optimizer_state_dict(self.parallel, self.optimizer, options=options)

    def load_optimizer_state(self, state: State) -> None:
        """Keep this process's slices."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.parallel, self.optimizer, state, options=options)


WAYS: dict[str, type[Sharding]] = {
    "oss": Oss,
    "fairscale_fsdp": FairScaleFsdp,
    "ddp": Ddp,
    "zero_redundancy": ZeroRedundancy,
    "fsdp2": Fsdp2,
}

# Which of the three a process holds only its share of.
SHARDED: dict[str, frozenset[str]] = {
    "oss": frozenset({"gradients", "optimizer"}),
    "fairscale_fsdp": frozenset({"parameters", "gradients", "optimizer"}),
    "ddp": frozenset(),
    "zero_redundancy": frozenset({"optimizer"}),
    "fsdp2": frozenset({"parameters", "gradients", "optimizer"}),
}


def same_optimizer_state(one: str, other: str) -> bool:
    """Whether a run can change from one way to the other: the fully sharded ones keep their state in own forms."""
    return one == other or {one, other} <= {"oss", "ddp", "zero_redundancy"}


def predicted_bytes(sharded: Sharding, config: TrainConfig, whole: int) -> dict[str, int]:
    """Predict the bytes of parameters, gradients and momentum on this process between two steps.

    Args:
        sharded: the model, spread over the processes.
        config: says in which way.
        whole: bytes of all parameters.
    """
    own, parts = sharded.owned_bytes(whole), SHARDED[config.sharding]
    return {name: own if name in parts else whole for name in ("parameters", "gradients", "optimizer")}


def sgd_settings(config: TrainConfig) -> dict[str, Any]:
    """SGD with Nesterov momentum."""
    return {
        "lr": config.learning_rate,
        "momentum": config.momentum,
        "nesterov": config.momentum > 0,
        "weight_decay": config.weight_decay,
    }


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Average gradients over all processes during the backward pass."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def sharded_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scale the loss of fp16 so that small gradients do not vanish; all processes skip a step if one overflows.

    A process sees its own share of the gradients only. With torch's plain scaler, one process would skip a step that
    the others make: they would part company, or wait for each other forever.
    """
    enabled = config.precision == "fp16"
    if device.type == "cuda":
        with quiet():
            from fairscale.optim.grad_scaler import ShardedGradScaler as FairScaleScaler
        return FairScaleScaler(enabled=enabled)
    # FairScale's switches itself off without a GPU. PyTorch took it over, and made it work on CPUs as well.
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler("cpu", enabled=enabled)


@contextlib.contextmanager
def quiet() -> Any:
    """FairScale is archived; it still imports names that torch has declared outdated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _local(tensor: Any) -> Any:
    """This process's part of a distributed tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
