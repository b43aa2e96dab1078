"""Bytes: what a training step will need on each rank, predicted from the model, and what it took, measured."""

import copy
import resource
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the storages behind `tensors`, each storage counted once; non-tensors are skipped."""
    storages = {}
    for tensor in tensors:
        if torch.is_tensor(tensor):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return everything the optimizer keeps for each parameter (momentum, second moments, counters)."""
    return [value for state in optimizer.state.values() for value in state.values()]


def activation_bytes(
    model: nn.Module, *inputs: torch.Tensor, batch_size: int, autocast: torch.dtype | None = None
) -> int:
    """Predict the bytes that a forward pass of `model` keeps for the backward pass.

    What autograd saves is counted for 2 and for 3 samples, on a copy of the model, and drawn out in a straight line:
    activations grow by the same amount with each sample. Parameters, which are there anyway, are not counted. (The
    `meta` device would need no forward pass, but makes torch import its compiler, which takes longer.)

    Args:
        model: plain module.
        inputs: the arguments of its forward, with 3 samples each.
        batch_size: number of samples to predict for.
        autocast: dtype of mixed precision, None for full precision.
    """
    twin = copy.deepcopy(model).cpu()
    two, three = (
        saved_bytes(twin, *(tensor[:num_samples].clone() for tensor in inputs), autocast=autocast)
        for num_samples in (2, 3)
    )
    return two + (batch_size - 2) * (three - two)


def saved_bytes(model: nn.Module, *inputs: torch.Tensor, autocast: torch.dtype | None = None) -> int:
    """Measure the bytes that a forward pass of `model` in training keeps for the backward pass.

    Parameters and buffers, which are there anyway, are not counted. Random numbers are put back as they were.

    Args:
        model: plain module, on the device of the inputs.
        inputs: the arguments of its forward.
        autocast: dtype of mixed precision, None for full precision.
    """
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}  # by storage: views of one tensor share memory

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    device, was_training = inputs[0].device, model.training
    model.train()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        model(*inputs)
    model.train(was_training)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Return the peak memory of this process and what was counted: CUDA allocations, or the whole process on a CPU."""
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "peak_of": "CUDA tensors"}
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_of": "whole process, libraries included",
    }
