"""A plain PyTorch loop in the few words of DeepSpeed's engine, so that one training can be made with both.

Every process holds everything; DistributedDataParallel averages the gradients while the backward pass still goes on.
It is here to compare with.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared.tensors.memory import optimizer_tensors, tensor_bytes

from deepspeed_gpt2_pile.config import TrainConfig

STATE = "state.pt"
BETAS, EPS = (0.9, 0.95), 1e-8  # as in the JSON files of DeepSpeed


class PlainEngine:
    """Forward pass, backward pass and step of data parallel training.

    Args:
        module: the model, on `device`.
        groups: its trained parameters, for the optimizer.
        config: precision, accumulation, clipping.
        device: of this process.
    """

    def __init__(self, module: Any, groups: list[dict[str, Any]], config: TrainConfig, device: torch.device) -> None:
        self.module, self.config, self.device = module, config, device
        self.micro_steps = 0
        ids = [device.index] if device.type == "cuda" else None
        self.parallel = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        self.trained = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, eps=EPS)

    def __call__(self, **inputs: Tensor) -> Any:
        """Run the forward pass, in mixed precision if the config says so."""
        self.parallel.require_backward_grad_sync = self.is_gradient_accumulation_boundary()
        enabled = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if enabled else contextlib.nullcontext():
            return self.parallel(**inputs)

    def train(self) -> None:
        """Switch dropout on."""
        self.parallel.train()

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether an optimizer step follows the current micro-batch."""
        return (self.micro_steps + 1) % self.config.gradient_accumulation_steps == 0

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        (loss / self.config.gradient_accumulation_steps).backward()

    def step(self) -> None:
        """Make an optimizer step if this was the last micro-batch."""
        if self.is_gradient_accumulation_boundary():
            if self.config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)  # keeps gradients as views into DDP's buckets
        self.micro_steps += 1

    def held_bytes(self) -> dict[str, int]:
        """Count the bytes of parameters, gradients and optimizer state that this process holds."""
        return {
            "parameters": tensor_bytes(self.module.parameters()),
            "gradients": tensor_bytes(p.grad for p in self.trained),
            "optimizer": tensor_bytes(optimizer_tensors(self.optimizer)),
        }

    def save_checkpoint(self, folder: Path) -> None:
        """Write the whole state from rank 0."""
        if dist.get_rank() == 0:
            torch.save({"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / STATE)

    def load_checkpoint(self, folder: Path) -> None:
        """Take the state from a checkpoint, whichever number of processes has written it."""
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
