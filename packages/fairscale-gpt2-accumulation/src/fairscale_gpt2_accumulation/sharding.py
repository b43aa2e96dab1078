"""Five ways to share a training step among processes, side by side: the same few operations, each in its own words.

    oss              FairScale OSS + ShardedDataParallel: optimizer state and reduced gradients sharded (ZeRO-1 and 2)
    fairscale_fsdp   FairScale FullyShardedDataParallel: parameters as well (ZeRO-3)
    ddp              PyTorch DistributedDataParallel: nothing sharded; with FairScale's AdaScale on top if asked for
    zero_redundancy  PyTorch ZeroRedundancyOptimizer + DistributedDataParallel: optimizer state; succeeds oss
    fsdp2            PyTorch fully_shard: parameters, gradients and optimizer state; succeeds fairscale_fsdp

A checkpoint holds whole, unsharded state, so that a run can go on with another number of processes.
"""

import abc
import contextlib
import copy
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors import memory

from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.model import LanguageModel

State = dict[str, Any]


class Sharding(abc.ABC):
    """A model and its optimizer, spread over the processes.

    Attributes:
        parallel: call it for a forward pass whose backward pass communicates.
        optimizer: AdamW, sharded or not.
    """

    parallel: nn.Module
    optimizer: torch.optim.Optimizer

    @abc.abstractmethod
    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        """Spread a model, which lies on the device whole, over the processes; all processes call it."""

    def no_sync(self) -> contextlib.AbstractContextManager:
        """Within it, gradients of a micro-batch only add up on each process."""
        return self.parallel.no_sync()

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad()

    def clip_grad_norm(self, max_norm: float) -> None:
        """Scale the gradient, whoever holds which part of it, down to this L2 norm if it is longer."""
        nn.utils.clip_grad_norm_(self.parallel.parameters(), max_norm)

    def step(self) -> None:
        """Change the weights."""
        self.optimizer.step()

    def gain(self) -> float | None:
        """Return AdaScale's gain, if it is in use."""
        return None

    def whole(self) -> LanguageModel:
        """Return the plain model with its present weights, whose forward pass waits for nobody. All call it."""
        return self.parallel.module

    def weights(self) -> State:
        """Return the whole state dict of the model, on every process. All processes call it."""
        return self.parallel.module.state_dict()

    def load_weights(self, weights: State) -> None:
        """Take over the whole state dict of a model. All processes call it."""
        self.parallel.module.load_state_dict(weights)

    def optimizer_state(self) -> State | None:
        """Return what the optimizer keeps for each parameter, by its name, on rank 0. All processes call it.

        Each process hands over what its own AdamW holds. FairScale's and PyTorch's `consolidate_state_dict` would do
        that, but FairScale's turns the step counters of the running optimizer into numbers, and on a CPU, where it
        reads all tensors of a process into one buffer, gives back the second moment as the first.
        """
        state = self._own_optimizer().state
        own = {name: state[p] for name, p in self.parallel.module.named_parameters() if p in state}
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, parts, dst=0)
        return {name: values for part in parts for name, values in part.items()} if parts is not None else None

    def load_optimizer_state(self, state: State) -> None:
        """Take this process's share of the whole state of the optimizer. All processes call it."""
        optimizer = self._own_optimizer()
        held = {p for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.parallel.module.named_parameters():
            if parameter in held and name in state:
                optimizer.state[parameter] = {key: value.clone() for key, value in state[name].items()}

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
    """FairScale's sharded data parallel: each process steps, and keeps moments for, its own share of the parameters.

    After the backward pass a gradient is reduced to the process that owns its parameter, and freed on the others.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        with quiet():
            from fairscale.nn.data_parallel import ShardedDataParallel
            from fairscale.optim import OSS
        self.optimizer = OSS(model.parameters(), optim=torch.optim.AdamW, **adamw_settings(config))
        # reduce_buffer_size=0: with buckets, FairScale reduces views that `zero_grad` of torch >= 2, which sets
        # gradients to None, has cut off. Training would go wrong on every process alike, and without an error.
        self.parallel = ShardedDataParallel(model, self.optimizer, reduce_buffer_size=0)

    def clip_grad_norm(self, max_norm: float) -> None:
        """FairScale's own: a process sees its share of the gradient, and the norm is that of the whole."""
        self.optimizer.clip_grad_norm(max_norm)

    def owned_bytes(self, whole: int) -> int:
        """Whole parameters are shared out, so that shares differ; FairScale says who gets which."""
        own = self.optimizer.partition_parameters()[dist.get_rank()]
        return sum(p.numel() * p.element_size() for group in own for p in group["params"])

    def _own_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optim


class FairScaleFsdp(Sharding):
    """FairScale's FullyShardedDataParallel: each process keeps a slice of every block's flattened parameters.

    A block's slices are gathered right before it computes, and its gradient is reduced slice by slice. Within
    `no_sync`, gradients add up unsharded: accumulating costs the memory that sharding has saved on them.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        if dist.get_world_size() == 1:
            raise UsageError(
                "error: --sharding fairscale_fsdp: FairScale cannot collect the state of a single process for a "
                "checkpoint; use --nproc 2 or more, or --sharding fsdp2"
            )
        with quiet():
            from fairscale.nn.data_parallel import FullyShardedDataParallel

            from fairscale_gpt2_accumulation import fsdp_on_cpu
        if device.type == "cpu":
            fsdp_on_cpu.install()
        self._whole = copy.deepcopy(model)
        # bucket_cap_mb=0: no buffer for gradients on their way, which would count as memory of the small models here.
        settings = {"compute_device": device, "bucket_cap_mb": 0}
        for i, block in enumerate(model.blocks):
            model.blocks[i] = FullyShardedDataParallel(block, **settings)
        self.parallel = FullyShardedDataParallel(model, **settings)
        self.optimizer = torch.optim.AdamW(self.parallel.parameters(), **adamw_settings(config))

    def clip_grad_norm(self, max_norm: float) -> None:
        """By hand, since FairScale's own asks for a GPU: the squares of all slices add up to that of the whole."""
        gradients = [p.grad for p in self.parallel.parameters() if p.grad is not None]
        squares = torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum()
        dist.all_reduce(squares)
        scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)

    def whole(self) -> LanguageModel:
        """Gather the weights into a copy that is not sharded."""
        self._whole.load_state_dict(self.weights())
        return self._whole

    def weights(self) -> State:
        """Gather all slices."""
        return self.parallel.state_dict()

    def load_weights(self, weights: State) -> None:
        """Keep this process's slices."""
        self.parallel.load_state_dict(weights)

    def optimizer_state(self) -> State | None:
        """Put together the slices of each flat parameter on rank 0, one behind the other.

        FairScale's `gather_full_optim_state_dict` has the faults of its OSS on a CPU: see `Sharding.optimizer_state`.
        """
        own = [self.optimizer.state[p] for p in self._slices()]
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, parts, dst=0)
        if parts is None:
            return None
        return {
            str(i): {
                key: torch.cat([part[i][key] for part in parts]) if value.ndim else value
                for key, value in first.items()
            }
            for i, first in enumerate(own)
        }

    def load_optimizer_state(self, state: State) -> None:
        """Keep this process's slices; the last one is filled up, by as much as the number of processes asks for."""
        for i, parameter in enumerate(self._slices()):
            numel = parameter._orig_size.numel()
            self.optimizer.state[parameter] = {
                key: self.parallel._get_shard(value[:numel])[0] if value.ndim else value.clone()
                for key, value in state[str(i)].items()
            }

    def _slices(self) -> list[nn.Parameter]:
        return self.optimizer.param_groups[0]["params"]


class Ddp(Sharding):
    """Plain data parallel: everything on every process, gradients averaged during the backward pass.

    With AdaScale (Johnson et al. 2020, arXiv 2007.05105): hooks on the gradients of single micro-batches estimate how
    much they differ, and `step` multiplies the learning rate by the gain, from 1, if they agree, to the number of
    micro-batches, if they are all noise. Then a large batch is worth as many small steps.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        self.parallel = data_parallel(model, device)
        self.optimizer = torch.optim.AdamW(model.parameters(), **adamw_settings(config))
        self.adascale: Any = None
        if config.adascale:
            with quiet():
                from fairscale.optim import AdaScale
            self.adascale = AdaScale(self.optimizer, num_gradients_to_accumulate=config.gradient_accumulation_steps)

    def zero_grad(self) -> None:
        """Keep the gradients as views into DDP's buckets."""
        self.optimizer.zero_grad(set_to_none=False)

    def step(self) -> None:
        """AdaScale's step is that of the optimizer with another learning rate."""
        (self.adascale or self.optimizer).step()

    def gain(self) -> float | None:
        """The present estimate."""
        return float(self.adascale.gain()) if self.adascale is not None else None

    def optimizer_state(self) -> State | None:
        """All processes hold the same. AdaScale's averages, NumPy arrays among the tensors, go as lists of numbers."""
        state = {name: self.optimizer.state[p] for name, p in self.parallel.module.named_parameters()}
        if self.adascale is not None:
            state["adascale"] = {key: value.tolist() for key, value in self.optimizer.state["adascale"].items()}
        return state

    def load_optimizer_state(self, state: State) -> None:
        """Take over the state, and AdaScale's averages."""
        averages = state.pop("adascale", None)
        super().load_optimizer_state(state)
        if self.adascale is not None and averages is not None:
            self.optimizer.state["adascale"] = {key: np.array(value) for key, value in averages.items()}


class ZeroRedundancy(Sharding):
    """PyTorch's answer to OSS: moments only for the own share of the parameters, then a broadcast of the result."""

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        self.parallel = data_parallel(model, device)
        self.optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.AdamW, **adamw_settings(config)
        )

    def zero_grad(self) -> None:
        """Keep the gradients as views into DDP's buckets."""
        self.optimizer.zero_grad(set_to_none=False)

    def owned_bytes(self, whole: int) -> int:
        """Whole parameters are shared out; PyTorch says who gets which, in a private method."""
        own = self.optimizer._partition_parameters()[dist.get_rank()]
        return sum(p.numel() * p.element_size() for group in own for p in group["params"])

    def _own_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optim


class Fsdp2(Sharding):
    """PyTorch's answer to FullyShardedDataParallel: every parameter becomes a tensor distributed over the processes."""

    def __init__(self, model: LanguageModel, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._whole = copy.deepcopy(model)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        self.parallel = fully_shard(model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(model.parameters(), **adamw_settings(config))

    @contextlib.contextmanager
    def no_sync(self) -> Any:
        """What a context manager is elsewhere is a switch here."""
        self.parallel.set_requires_gradient_sync(False)
        yield
        self.parallel.set_requires_gradient_sync(True)

    def whole(self) -> LanguageModel:
        """Gather the weights into a copy that is not sharded."""
        self._whole.load_state_dict(self.weights())
        return self._whole

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
    """Predict the bytes of parameters, gradients and moments on this process between two steps.

    Args:
        sharded: the model, spread over the processes.
        config: says in which way.
        whole: bytes of all parameters.
    """
    own, parts = sharded.owned_bytes(whole), SHARDED[config.sharding]
    held = {name: own if name in parts else whole for name in ("parameters", "gradients", "optimizer")}
    return held | {"optimizer": 2 * held["optimizer"]}  # AdamW keeps two moments


def adamw_settings(config: TrainConfig) -> dict[str, Any]:
    """AdamW for all parameters alike: FairScale's FullyShardedDataParallel has them in one flat tensor a block.

    fused: one pass over the memory of each parameter, also on a CPU.
    """
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": (0.9, 0.95), "fused": True}


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Average gradients over all processes during the backward pass."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


@contextlib.contextmanager
def quiet() -> Any:
    """FairScale is archived; it still imports names that torch has declared outdated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _local(tensor: Any) -> Any:
    """This process's part of a distributed tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
