"""GPT-2 of the transformers library, with its loss. Nothing here knows that training is distributed.

A pretrained model comes by its name on the Hugging Face Hub or from a folder; `tiny` is a small one from scratch.
Shapes: B blocks, T tokens of a block, V tokens of the vocabulary.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from trainyard_shared.console import say
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.errors import DataError, UsageError
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.tokenization import FORMS, load_tokenizer, make_tokenizer

IGNORED = -100
"""target of a place that only fills up a shorter block"""
HEAD_SIZE = 32

# Its bars and reports speak of what is normal here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class LanguageModel(nn.Module):
    """GPT-2 whose forward pass ends in the loss.

    The loss is a sum, not a mean: whoever knows how many tokens all micro-batches of all processes have together
    divides by that number once. Means of micro-batches with different numbers of tokens would not add up to the mean.
    """

    def __init__(self, gpt2: GPT2LMHeadModel) -> None:
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of all tokens, in nats.

        Args:
            inputs: (B, T) token ids. No mask goes with them: a token sees only those before it, and what fills up a
                shorter block stands behind its end.
            targets: (B, T) the tokens that follow each, IGNORED where there is none.
        """
        logits = self.gpt2(input_ids=inputs, use_cache=False).logits  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, which are sharded one by one."""
        return self.gpt2.transformer.h


class Pair(NamedTuple):
    """A model and what belongs to it."""

    model: LanguageModel
    tokenizer: Any


def build(config: TrainConfig, text: str) -> Pair:
    """Return the model that `config` names, its new weights drawn from torch's global generator.

    Args:
        config: model, tokenizer, sizes, dropout.
        text: for training, from which `tiny` takes its vocabulary if no tokenizer is given.

    Raises:
        DataError: the model or the tokenizer cannot be had, or they do not fit together.
        UsageError: context_length is more than the model can see.
    """
    if config.model != "tiny":
        return load_pretrained(config.model, config.tokenizer, config.dropout, config.context_length)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else make_tokenizer(text, config.vocab_size)
    settings = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.context_length,
        n_embd=config.hidden_size,
        n_layer=config.num_layers,
        n_head=config.hidden_size // HEAD_SIZE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_dropout(config.dropout),
    )
    return Pair(LanguageModel(GPT2LMHeadModel(settings)), tokenizer)


def load_pretrained(
    name: str, tokenizer_folder: Path | None, dropout: float | None = None, context_length: int | None = None
) -> Pair:
    """Return a pretrained GPT-2 from the Hub or a folder, and its tokenizer.

    Raises:
        DataError: it cannot be had, is no GPT-2, or does not fit the tokenizer.
        UsageError: context_length is more than the model can see.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DataError(f"error: --model {name}: the folder has no config.json: it holds no model of transformers")
        options: dict[str, Any] = {"local_files_only": True}
    else:
        options = {"local_files_only": is_offline()}
        say(f"looking for {name} in the cache of the Hugging Face Hub{'' if is_offline() else ' and on the Hub'}")
    try:
        settings = AutoConfig.from_pretrained(name, **options)
    except Exception as error:  # of transformers, tokenizers, safetensors or the Hub: each has its own
        raise _cannot_have(name, "config", error) from error
    if settings.model_type != "gpt2":
        raise DataError(f"error: --model {name}: is a model of type {settings.model_type}, not GPT-2")
    if context_length is not None and context_length > settings.n_positions:
        raise UsageError(
            f"error: context_length: {context_length} is not allowed: {name} sees at most {settings.n_positions} tokens"
        )
    for key, value in _dropout(dropout).items():
        setattr(settings, key, value)
    if tokenizer_folder is not None:
        tokenizer = load_tokenizer(tokenizer_folder)
    elif folder.is_dir() and any((folder / names[0]).is_file() for names in (*FORMS, ("tokenizer.json",))):
        tokenizer = load_tokenizer(folder)
    elif folder.is_dir():
        raise _cannot_have(name, "tokenizer", OSError("it has no tokenizer.json, and no vocab.json with merges.txt."))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except Exception as error:
            raise _cannot_have(name, "tokenizer", error) from error
    if len(tokenizer) > settings.vocab_size:
        raise DataError(
            f"error: --model {name}: its vocabulary has {settings.vocab_size:,} tokens, that of the tokenizer "
            f"{len(tokenizer):,}: they do not belong together"
        )
    try:
        model, loaded = GPT2LMHeadModel.from_pretrained(
            name, config=settings, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:
        raise _cannot_have(name, "weights", error) from error
    if missing := sorted(loaded["missing_keys"]):
        raise DataError(f"error: --model {name}: its weights lack {len(missing)} tensors, such as {missing[0]}")
    return Pair(LanguageModel(model), tokenizer)


def _dropout(probability: float | None) -> dict[str, float]:
    names = () if probability is None else ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    return dict.fromkeys(names, probability or 0.0)


def _cannot_have(name: str, what: str, error: Exception) -> DataError:
    where = "in this folder" if Path(name).is_dir() else "in the cache or on the Hugging Face Hub"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(
        f"error: --model {name}: no {what} to be had {where}: {line.removesuffix('.')}. "
        "What to do: --model FOLDER with config.json, weights and the files of the tokenizer, or --model tiny."
    )
