"""Bytes under DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): predicted by its formulas, and counted.

Counting reads private attributes of DeepSpeed's engine, since there is no public way: the projects pin its version, and
compare what is counted here with the formulas in their tests. Nothing here imports DeepSpeed.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from trainyard_shared.tensors.memory import tensor_bytes

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# What each stage shares out among the processes.
SHARDED: dict[int, frozenset[str]] = {
    0: frozenset(),
    1: frozenset({"optimizer"}),
    2: frozenset({"optimizer", "gradients"}),
    3: frozenset({"optimizer", "gradients", "parameters"}),
}


def predicted_bytes(
    num_parameters: int, stage: int, world_size: int, precision: Literal["fp32", "bf16", "fp16"], moments: int = 2
) -> dict[str, int]:
    """Predict the bytes of parameters, gradients and optimizer state that one process holds before an optimizer step.

    The optimizer's share holds the moments in fp32 and, but for stage 0 in fp32, a second copy of the parameters in
    fp32, from which the training parameters are made anew after each step.

    Args:
        num_parameters: trained parameters of the whole model.
        stage: of ZeRO, 0 to 3.
        world_size: processes that share out the state.
        precision: of parameters and gradients.
        moments: fp32 numbers the optimizer keeps for each parameter: 2 for Adam, 1 for SGD with momentum.
    """
    copy = 0 if stage == 0 and precision == "fp32" else 4
    whole = {
        "parameters": BYTES[precision] * num_parameters,
        "gradients": BYTES[precision] * num_parameters,
        "optimizer": (4 * moments + copy) * num_parameters,
    }
    return {name: -(-size // world_size) if name in SHARDED[stage] else size for name, size in whole.items()}


def gradients_of_slice(group_sizes: Sequence[Sequence[int]], rank: int, world_size: int) -> int:
    """Return how many gradients a process holds at the end of a backward pass of stage 1 or 2, not offloaded.

    Both stages cut each group of parameters, put in a row, into equal slices, and keep the gradients of all parameters
    that a slice touches; of one that is cut in two, both sides keep the whole. Hence more than the formula says, by at
    most two parameters in each group. (By the formula, stage 1 holds all gradients; DeepSpeed's does so only until the
    end of the backward pass.)

    Args:
        group_sizes: numbers of each trained parameter, by group, in the optimizer's order.
        rank: of the process among those that share out the state.
        world_size: how many share it out; alone, a process holds everything.
    """
    held = 0
    for sizes in group_sizes:
        length = -(-sum(sizes) // world_size)
        begin, end, at = rank * length, (rank + 1) * length, 0
        for size in sizes:
            held += size if at < end and at + size > begin else 0
            at += size
    return held


def held_bytes(engine: Any) -> dict[str, int]:
    """Count the bytes of parameters, gradients and optimizer state that this process holds.

    Call it between `engine.backward` and `engine.step`, when the gradients are there.

    Args:
        engine: what `deepspeed.initialize` returned, with any stage of ZeRO, offloaded to the CPU or not.
    """
    wrapper = engine.optimizer
    inner = getattr(wrapper, "optimizer", wrapper)
    parameters = list(engine.module.parameters())
    own = {id(parameter) for parameter in parameters}
    in_optimizer = [p for group in inner.param_groups for p in group["params"]]

    # Stage 3 leaves an empty tensor in place of a parameter, and this process's slice in `ds_tensor`.
    held = [*parameters, *(p.ds_tensor for p in parameters if hasattr(p, "ds_tensor"))]
    masters = [p for p in in_optimizer if id(p) not in own]
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        masters += getattr(wrapper, name, None) or []
    moments = [value for state in inner.state.values() for value in state.values()]
    gradients = [p.grad for p in [*parameters, *in_optimizer]]
    for name in ("averaged_gradients", "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"):
        for value in (getattr(wrapper, name, None) or {}).values():
            gradients += value if isinstance(value, list | tuple) else [value]
    gradients.append(getattr(wrapper, "grad_partitions_flat_buffer", None))
    return _each_once({"parameters": held, "gradients": gradients, "optimizer": [*masters, *moments]})


def _each_once(groups: dict[str, list[Any]]) -> dict[str, int]:
    """Return the bytes of each group; storage that two groups share counts for the first."""
    counted, total = {}, 0
    so_far: list[torch.Tensor] = []
    for name, tensors in groups.items():
        so_far += [tensor for tensor in tensors if torch.is_tensor(tensor) and tensor.numel()]
        before, total = total, tensor_bytes(so_far)
        counted[name] = total - before
    return counted
