"""PyTorch's own ways to share out a step, in the few words of DeepSpeed's engine, so that one loop trains with each.

    engine(...)             the forward pass
    engine.backward(loss)   gradients, divided by the accumulation steps
    engine.step()           an optimizer step after the last micro-batch, nothing before

They are here to compare with: `ddp` shares out nothing but the data, `fsdp2` (fully_shard) everything, as ZeRO-3 does.
"""

import abc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.tensors.memory import optimizer_tensors, tensor_bytes

from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.model import layers_of, parameter_groups

STATE = "state.pt"


class PyTorchEngine(abc.ABC):
    """What both have in common. Subclasses wrap `module` and say when gradients are exchanged.

    Args:
        module: the model, on `device`.
        config: precision, accumulation, clipping.
        device: of this process.
    """

    def __init__(self, module: Any, config: TrainConfig, device: torch.device) -> None:
        self.module, self.config, self.device = module, config, device
        self.micro_steps = 0
        self.parallel = self.wrap()
        # After wrapping, which in FSDP2 puts other tensors in the place of the parameters.
        groups = parameter_groups(module, config.weight_decay, config.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)

    @abc.abstractmethod
    def wrap(self) -> Any:
        """Return the module whose backward pass exchanges gradients."""

    @abc.abstractmethod
    def exchange_gradients(self, wanted: bool) -> None:
        """Say whether the next backward pass exchanges gradients: only that of the last micro-batch has to."""

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether an optimizer step follows the current micro-batch."""
        return (self.micro_steps + 1) % self.config.gradient_accumulation_steps == 0

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Run the forward pass."""
        self.exchange_gradients(self.is_gradient_accumulation_boundary())
        return self.parallel(**inputs)

    def train(self) -> None:
        """Switch dropout on."""
        self.parallel.train()

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients."""
        (loss / self.config.gradient_accumulation_steps).backward()

    def step(self) -> None:
        """Make an optimizer step if this was the last micro-batch."""
        if self.is_gradient_accumulation_boundary():
            if self.config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.micro_steps += 1

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """Return the whole weights on the CPU; all processes call it."""
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu().clone()
            for name, p in self.module.named_parameters()
        }

    def held_bytes(self) -> dict[str, int]:
        """Count the bytes of parameters, gradients and optimizer state that this process holds."""
        parameters = list(self.module.parameters())
        groups = {
            "parameters": parameters,
            "gradients": [p.grad for p in parameters],
            "optimizer": optimizer_tensors(self.optimizer),
        }
        return {name: tensor_bytes(_local(tensors)) for name, tensors in groups.items()}

    def save_checkpoint(self, folder: Path) -> None:
        """Write the whole state from rank 0; all processes call it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.module, self.optimizer, options=options)
        if dist.get_rank() == 0:
            torch.save({"model": model, "optimizer": optimizer}, folder / STATE)

    def load_checkpoint(self, folder: Path) -> None:
        """Take the state from a checkpoint, which may come from another number of processes."""
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            self.module,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )


class DDPEngine(PyTorchEngine):
    """Every process holds everything; gradients are averaged while the backward pass still goes on."""

    def wrap(self) -> Any:
        """Wrap the model; in bf16 the forward pass is autocast, parameters stay fp32."""
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.module, device_ids=ids)

    def exchange_gradients(self, wanted: bool) -> None:
        """Do what `no_sync()` does, which is a block around the forward pass."""
        self.parallel.require_backward_grad_sync = wanted

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Run the forward pass in mixed precision."""
        enabled = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return super().__call__(**inputs)


class FSDP2Engine(PyTorchEngine):
    """Every process holds its share of each parameter, and gathers a layer only while it computes."""

    def wrap(self) -> Any:
        """Shard each layer, then the rest; parameters are gathered in bf16 if the precision says so."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.config.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in layers_of(self.module):
            fully_shard(layer, mp_policy=policy)
        fully_shard(self.module, mp_policy=policy)
        return self.module

    def exchange_gradients(self, wanted: bool) -> None:
        """Keep unsharded gradients until the last micro-batch."""
        self.parallel.set_requires_gradient_sync(wanted)


def _local(tensors: list[Any]) -> list[Any]:
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
