"""Put together, from what each process holds, the weights of the whole model: by the names that transformers uses."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepspeed_bert_sentiment140.model import layers_of

# Matrices whose rows AutoTP shares out, so that the results have to be added up; their biases are whole everywhere.
# All others in the layers of an encoder are shared out by columns, biases included.
ADDED_UP = ("output.dense", "out_lin", "lin2")


def copy_of(model: Any) -> Any:
    """Return a copy for evaluation, in fp32 on the CPU, without gradients."""
    whole = copy.deepcopy(model).cpu().float()
    if whole.is_activation_checkpointing:
        whole.gradient_checkpointing_disable()
    return whole


@torch.no_grad()
def gather(engine: Any, names: dict[int, str], parallel: str, deepspeed: Any) -> dict[str, Tensor]:
    """Return the whole model's parameters on every process, in fp32 on the CPU; all processes call it.

    Args:
        engine: what trains the model.
        names: of every parameter, by its id.
        parallel: as in the config.
        deepspeed: the module.
    """
    if parallel == "pipeline":
        own = {names[id(p)]: cpu_copy(p) for p in engine.module.parameters()}
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        return {name: tensor for part in parts for name, tensor in part.items()}
    if parallel == "tensor":
        return gather_shares(engine.module)
    # [deepspeed] Under ZeRO-3 a parameter is empty but within this block; in the other stages the block does nothing.
    whole = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            whole[name] = cpu_copy(parameter)
    return whole


def gather_shares(module: nn.Module) -> dict[str, Tensor]:
    """[deepspeed] Return the parameters that AutoTP has shared out, put together, and all others as they are."""
    whole = {}
    for path, layer in module.named_modules():
        named = dict(layer.named_parameters(recurse=False))
        held = [parameter.data for parameter in named.values()]
        if hasattr(layer, "gather_params"):
            layer.gather_params(list(named.values()))
        for name, parameter in named.items():
            whole[f"{path}.{name}" if path else name] = cpu_copy(parameter)
        # The very same memory again, not a new slice: ZeRO-1 writes its updates there.
        for parameter, data in zip(named.values(), held, strict=True):
            parameter.data = data
    return whole


def cpu_copy(tensor: Tensor) -> Tensor:
    """Return a copy in fp32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def tensor_parallel_sizes(model: Any, parts: int) -> tuple[int, int]:
    """Predict how many parameters, and how many trained ones, each of `parts` processes holds under AutoTP."""
    in_layers = {
        id(p)
        for layer in layers_of(model)[1:]
        for m in layer.modules()
        if isinstance(m, nn.Linear)
        for p in m.parameters()
    }
    sizes = [0, 0]
    for name, parameter in model.named_parameters():
        added_up = name.removesuffix(".weight").removesuffix(".bias").endswith(ADDED_UP)
        whole = id(parameter) not in in_layers or (added_up and name.endswith(".bias"))
        size = parameter.numel() if whole else parameter.numel() // parts
        sizes[0] += size
        sizes[1] += size if parameter.requires_grad else 0
    return sizes[0], sizes[1]
