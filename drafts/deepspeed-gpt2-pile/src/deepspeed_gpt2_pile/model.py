"""GPT-2 of the transformers library: from scratch or pretrained, and what of it is trained. It knows no backend.

B: sequences in a micro-batch, T: tokens of a sequence, V: size of the vocabulary.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainyard_shared.console import say
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.memory import saved_bytes

if not torch.cuda.is_available():
    # transformers imports accelerate, and that DeepSpeed, which looks for accelerators unless it is told.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import transformers
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from deepspeed_gpt2_pile.config import TrainConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The linear layers of a GPT-2 block: attention in and out, feed-forward in and out.
LORA_TARGETS = ["c_attn", "c_proj", "c_fc"]

# Its bars and reports speak of what is normal here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def settings_of(config: TrainConfig, vocab_size: int, end_of_text: int) -> GPT2Config:
    """Return the settings of the model that `config` names.

    Raises:
        DataError: the pretrained model cannot be had or is no GPT-2.
        UsageError: vocabulary or context length do not fit it.
    """
    if config.model == "scratch":
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=config.context_length,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            pad_token_id=end_of_text,
            use_cache=False,
            **_dropout(config),
        )
    name, folder = config.model, Path(config.model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(f"error: --model {name}: the folder has no config.json: it holds no model of transformers")
    if not folder.is_dir():
        say(f"looking for {name} in the cache of the Hugging Face Hub{'' if is_offline() else ' and on the Hub'}")
    try:
        settings = AutoConfig.from_pretrained(name, local_files_only=folder.is_dir() or is_offline())
    except Exception as error:  # of transformers or the Hub's client: each has its own
        raise _cannot_have(name, "config", error) from error
    if not isinstance(settings, GPT2Config):
        raise DataError(f"error: --model {name}: a model of type {settings.model_type}, where a gpt2 is wanted")
    if config.context_length > settings.n_positions:
        raise UsageError(
            f"error: context_length: {config.context_length} is not allowed: {name} takes {settings.n_positions} tokens"
        )
    if settings.vocab_size < vocab_size:
        raise UsageError(
            f"error: tokenizer: {config.tokenizer_name} has {vocab_size:,} tokens, but {name} was made for "
            f"{settings.vocab_size:,}: take its own"
        )
    settings.use_cache = False
    for key, probability in _dropout(config).items():
        setattr(settings, key, probability)
    return settings


def from_scratch(settings: GPT2Config) -> GPT2LMHeadModel:
    """Return a model with initial weights drawn from torch's global generator, as Radford et al. (2019) draw them."""
    return GPT2LMHeadModel(settings)


def from_pretrained(name: str, settings: GPT2Config) -> GPT2LMHeadModel:
    """Return a pretrained model in fp32; raises DataError if its weights cannot be had or are not whole."""
    local = Path(name).is_dir() or is_offline()
    try:
        model, loaded = GPT2LMHeadModel.from_pretrained(
            name, config=settings, dtype=torch.float32, local_files_only=local, output_loading_info=True
        )
    except Exception as error:  # of transformers, safetensors or the Hub's client: each has its own
        raise _cannot_have(name, "weights", error) from error
    if missing := set(loaded["missing_keys"]) - {"lm_head.weight"}:
        raise DataError(f"error: --model {name}: its weights lack {len(missing)} tensors, such as {min(missing)}")
    return model


def prepared(model: Any, config: TrainConfig) -> Any:
    """Return the model with what `tuning` trains set free, the rest frozen, and activations as the config says."""
    if config.tuning == "last":
        blocks = model.transformer.h
        if config.num_tuned_layers > len(blocks):
            raise UsageError(
                f"error: num_tuned_layers: {config.num_tuned_layers} is not allowed: the model has {len(blocks)} layers"
            )
        model.requires_grad_(False)
        # The head is not among them: it is the token embeddings, the lowest layer, over again.
        for part in (*blocks[-config.num_tuned_layers :], model.transformer.ln_f):
            part.requires_grad_(True)
    if config.activation_checkpointing:
        use_checkpointing(model)
    if config.tuning == "lora":
        from peft import LoraConfig, get_peft_model

        # fan_in_fan_out: GPT-2 keeps its matrices transposed (Conv1D).
        additions = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=LORA_TARGETS,
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, additions)
    return model


def use_checkpointing(model: Any) -> None:
    """Let each block keep only its input and compute the rest again in the backward pass (arXiv 1604.06174)."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def plain(model: Any) -> GPT2LMHeadModel:
    """Return the GPT-2 within, with low-rank additions, if there are any, added to its weights."""
    return model if isinstance(model, GPT2LMHeadModel) else model.merge_and_unload()


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters for an optimizer: matrices, which decay, and vectors, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # Under ZeRO-3 the shape of a parameter that is shared out already is in ds_shape.
    decays = [len(getattr(p, "ds_shape", p.shape)) > 1 for p in trained]
    groups = [
        {"params": [p for p, d in zip(trained, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(trained, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token, in nats, over (B, T + 1) token ids."""
    logits = model(input_ids=tokens[:, :-1]).logits  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def set_weights(model: Any, weights: dict[str, Tensor]) -> None:
    """Copy weights by the names of `named_parameters`, in which the head, tied to the embeddings, is not repeated."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def load_trained(folder: Path) -> GPT2LMHeadModel:
    """Return the model that a run or an export has saved; raises DataError if it cannot be read."""
    try:
        return GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # as above
        raise DataError(f"error: {folder}: cannot be read as a GPT-2 of transformers: {_first_line(error)}") from error


def predicted_activation_bytes(settings: GPT2Config, config: TrainConfig) -> int:
    """Predict what a forward pass keeps for the backward pass, with the loss, in one process.

    Counted on models of 1 and 2 blocks with 2 and 3 sequences, and drawn out in a straight line. Frozen and low-rank
    parts are left out of account: it is the figure of full training.
    """

    def counted(num_layers: int, num_sequences: int) -> int:
        small = GPT2Config(**settings.to_dict() | {"n_layer": num_layers})
        return measured_activation_bytes(GPT2LMHeadModel(small), num_sequences, config)

    per_layers = [[counted(layers, sequences) for sequences in (2, 3)] for layers in (1, 2)]
    at_depth = [one + (settings.n_layer - 1) * (two - one) for one, two in zip(*per_layers, strict=True)]
    return at_depth[0] + (config.micro_batch_size - 2) * (at_depth[1] - at_depth[0])


def measured_activation_bytes(model: Any, num_sequences: int, config: TrainConfig) -> int:
    """Measure what a forward pass keeps for the backward pass; `model` is changed.

    With activation checkpointing, the activations of the one block that is computed again are not in it.
    """
    autocast = config.engine == "ddp" and config.precision != "fp32"
    if not autocast:
        model = model.to(DTYPES[config.precision])
    if config.activation_checkpointing:
        use_checkpointing(model)
    device = next(model.parameters()).device
    tokens = torch.zeros(num_sequences, config.context_length + 1, dtype=torch.long, device=device)
    return saved_bytes(_WithLoss(model), tokens, autocast=DTYPES[config.precision] if autocast else None)


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return loss_of(self.model, tokens)


def _dropout(config: TrainConfig) -> dict[str, float]:
    return dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)


def _cannot_have(name: str, what: str, error: Exception) -> DataError:
    where = "in this folder" if Path(name).is_dir() else "in the cache or on the Hugging Face Hub"
    return DataError(
        f"error: --model {name}: no {what} to be had {where}: {_first_line(error)} "
        "What to do: --model FOLDER with config.json, model.safetensors and the files of the tokenizer, or --model "
        "scratch."
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
