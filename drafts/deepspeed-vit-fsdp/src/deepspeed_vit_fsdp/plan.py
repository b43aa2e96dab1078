"""The memory that each GPU needs to train a model, for every way of sharing it out, before anything is trained."""

from typing import Any

from trainyard_shared.console import bytes_text, say
from transformers import ViTConfig

from deepspeed_vit_fsdp import communication, model, planning
from deepspeed_vit_fsdp.config import PlanConfig

# Width, layers, heads, width of the MLP: DeiT-Ti and DeiT-S (arXiv 2012.12877), ViT-B, L and H (arXiv 2010.11929).
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}


def plan(config: PlanConfig) -> None:
    """Print one row for each strategy, with and without activation checkpointing."""
    settings = settings_of(config)
    num_parameters = count_parameters(settings)
    say(
        f"{config.model}: {num_parameters:,} parameters, {settings.image_size} pixels a side, "
        f"{config.world_size} GPUs, {config.micro_batch_size} images each, {config.precision}"
    )
    found = rows(settings, num_parameters, config)
    columns = ["strategy", "checkpointing", *planning.STATES, "activations", "gathered", "GPU", "host", "sent a step"]
    table = [columns, *([*row["name"], *map(bytes_text, row["bytes"]), row["verdict"]] for row in found)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=False))
        ]
        say("  ".join([*cells, *line[len(columns) :]]).rstrip())
    say(
        "GPU: the sum of what lies there when the backward pass begins; the libraries, the allocator's fragments and "
        "buckets of communication come on top. gathered: whole parameters around the layer that computes."
    )


def rows(settings: Any, num_parameters: int, config: PlanConfig) -> list[dict[str, Any]]:
    """Return for each strategy its name, bytes in the order of the table, and whether it fits."""
    autocast = config.precision == "bf16"  # of DDP, whose parameters stay in fp32
    activations = {
        (again, mixed): planning.activation_bytes(
            settings, config.micro_batch_size, config.precision, checkpointing=again, autocast=mixed
        )
        for again in (False, True)
        for mixed in {False, autocast}
    }
    found = []
    for strategy in planning.STRATEGIES:
        if not strategy.is_deepspeed and config.precision == "fp16":
            continue  # which this project trains with DeepSpeed only
        state = planning.state_bytes(num_parameters, strategy, config.world_size, config.precision)
        gathered = planning.transient_bytes(settings, strategy, config.precision)
        sent = communication.predicted_bytes(num_parameters, strategy, config.world_size, config.precision)
        for again in (False, True):
            host = sum(size for part, size in state.items() if part in strategy.offloaded)
            kept = activations[again, autocast and strategy.name == "ddp"]
            on_gpu = sum(state.values()) - host + kept + gathered
            fits = on_gpu < config.memory_gib * 2**30
            found.append(
                {
                    "name": (strategy.name, "yes" if again else "no"),
                    "bytes": (*state.values(), kept, gathered, on_gpu, host, sent),
                    "verdict": "" if fits else f"more than {config.memory_gib:g} GiB",
                }
            )
    return found


def settings_of(config: PlanConfig) -> Any:
    """Return the settings of the model; those of its name's size, or what the Hub or a folder says."""
    names = [str(number) for number in range(config.num_classes)]
    if config.model not in SIZES:
        return model.pretrained_settings(config.model, names, dropout=0.0)
    width, layers, heads, inner = SIZES[config.model]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        image_size=config.image_size,
        patch_size=16,
        num_labels=config.num_classes,
    )


def count_parameters(settings: Any) -> int:
    """Count the parameters of a model without making its weights."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in model.without_weights(settings).parameters())
