"""Bytes that a process needs, predicted before anything is trained: of any model, on any number of GPUs, in any way.

Parameters, gradients and optimizer state follow the formulas of ZeRO (arXiv 1910.02054). Activations are counted, not
derived: what autograd keeps grows by the same amount with each image and with each layer, so it is counted on models of
one and two layers with two and three images, and drawn out in straight lines.
"""

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from trainyard_shared.tensors.memory import saved_bytes
from trainyard_shared.tensors.zero import BYTES, SHARDED, predicted_bytes

from deepspeed_vit_fsdp import model as models

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STATES = ("parameters", "gradients", "optimizer")


@dataclass(frozen=True)
class Strategy:
    """One way to share out a training state.

    Attributes:
        name: for people.
        stage: what it shares out: that of ZeRO; FSDP2 is as 3, DDP as 0.
        offloaded: what lies in the memory of the host instead of the GPU's.
        is_deepspeed: whether a second copy of the parameters in fp32 exists where training is in fp32 as well.
    """

    name: str
    stage: int
    offloaded: frozenset[str] = frozenset()
    is_deepspeed: bool = True


STRATEGIES = (
    Strategy("ddp", 0, is_deepspeed=False),
    Strategy("zero0", 0),
    Strategy("zero1", 1),
    Strategy("zero2", 2),
    Strategy("zero3", 3),
    Strategy("zero3_offload", 3, frozenset({"optimizer"})),
    Strategy("zero3_offload_all", 3, frozenset({"optimizer", "parameters"})),
    Strategy("fsdp2", 3, is_deepspeed=False),
)


def strategy_of(engine: str, settings: dict[str, Any]) -> Strategy:
    """Return the strategy of an engine and, for DeepSpeed, its JSON settings."""
    if engine != "deepspeed":
        return next(strategy for strategy in STRATEGIES if strategy.name == engine)
    zero = settings.get("zero_optimization", {})
    offloaded = {
        part
        for part, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param"))
        if zero.get(key, {}).get("device", "none") != "none"
    }
    return Strategy("deepspeed", zero.get("stage", 0), frozenset(offloaded))


def state_bytes(
    num_parameters: int, strategy: Strategy, world_size: int, precision: str, *, reduced: bool = False
) -> dict[str, int]:
    """Predict the bytes of parameters, gradients and optimizer state of one process, wherever they lie.

    Args:
        num_parameters: of the whole model.
        strategy: how the state is shared out.
        world_size: processes.
        precision: of parameters and gradients.
        reduced: after the gradients have been reduced, when ZeRO-1 of DeepSpeed 0.19.8 lets go of those that other
            processes own; during the backward pass it holds all of them, where ZeRO-2 never does.
    """
    if strategy.is_deepspeed:
        kind: Any = precision
        found = predicted_bytes(num_parameters, strategy.stage, world_size, kind)
        if reduced and strategy.stage == 1:
            found["gradients"] = predicted_bytes(num_parameters, 2, world_size, kind)["gradients"]
        return found
    # PyTorch keeps parameters and gradients in fp32, and no copy.
    whole = {"parameters": 4 * num_parameters, "gradients": 4 * num_parameters, "optimizer": 8 * num_parameters}
    return {name: -(-size // world_size) if name in SHARDED[strategy.stage] else size for name, size in whole.items()}


def activation_bytes(
    settings: Any, batch_size: int, precision: str, *, checkpointing: bool, autocast: bool = False
) -> int:
    """Predict the bytes of activations that the backward pass of a micro-batch needs at the same time.

    With checkpointing these are the inputs of all layers, and all of the one layer that is computed again.

    Args:
        settings: of the model (a transformers config).
        batch_size: images.
        precision: of parameters and activations.
        checkpointing: whether layers are computed again.
        autocast: parameters stay fp32, and only the forward pass is in 16 bits.
    """

    @functools.cache
    def counted(num_layers: int, num_images: int, again: bool) -> int:
        small = copy.deepcopy(settings)
        small.num_hidden_layers = num_layers
        twin = models.without_weights(small)
        return measured_activation_bytes(
            twin, torch.zeros(num_images, 3, small.image_size, small.image_size), precision, again, autocast
        )

    def drawn_out(again: bool, num_layers: int) -> int:
        one, two = (
            [counted(layers, images, again) for layers in (1, 2)] for images in (2, 3)
        )  # with 2 and with 3 images
        per_images = [pair[0] + (num_layers - 1) * (pair[1] - pair[0]) for pair in (one, two)]
        return per_images[0] + (batch_size - 2) * (per_images[1] - per_images[0])

    depth = settings.num_hidden_layers
    if not checkpointing:
        return drawn_out(False, depth)
    return drawn_out(True, depth) + drawn_out(False, 2) - drawn_out(False, 1)


def measured_activation_bytes(
    model: nn.Module, images: torch.Tensor, precision: str, checkpointing: bool, autocast: bool = False
) -> int:
    """Measure what a forward pass of `model` (a plain module, which is changed) keeps for the backward pass."""
    if not autocast:
        model = model.to(DTYPES[precision])
        images = images.to(DTYPES[precision])
    if checkpointing:
        use_checkpointing(model)
    return saved_bytes(model, images, autocast=DTYPES[precision] if autocast else None)


def use_checkpointing(model: Any) -> None:
    """Let each layer keep only its input and compute the rest again in the backward pass (arXiv 1604.06174)."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def transient_bytes(settings: Any, strategy: Strategy, precision: str) -> int:
    """Predict the bytes that are there for a moment: what ZeRO-3 and FSDP2 gather around the layer that computes."""
    if strategy.stage < 3:
        return 0
    smaller = copy.deepcopy(settings)
    smaller.num_hidden_layers = 1
    with torch.device("meta"):
        one = sum(p.numel() for p in models.without_weights(smaller).parameters())
        smaller.num_hidden_layers = 2
        layer = sum(p.numel() for p in models.without_weights(smaller).parameters()) - one
    # The layer that computes and the next, which is on its way.
    return 2 * layer * BYTES[precision]
