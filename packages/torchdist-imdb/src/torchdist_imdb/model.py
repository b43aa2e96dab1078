"""Encoders of the transformers library with a head for two classes. Nothing here knows that training is distributed.

A pretrained model comes by its name on the Hugging Face Hub or from a folder; `tiny` is made here, with a vocabulary
learned from the training reviews, so that everything can be tried offline. It is a small ModernBERT (Warner et al.
2024, arXiv 2412.13663): its relative positions and narrow windows learn what stands next to what, `far from dull`,
from a few thousand reviews. BERT's positions take many more.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from trainyard_shared.console import say
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.datasets.imdb import clean
from trainyard_shared.errors import DataError, UsageError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, ModernBertConfig

from torchdist_imdb.config import TrainConfig

TINY_DROPOUT = 0.1
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Its bars and reports speak of what is normal here: a new head on an old encoder.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Classifier(NamedTuple):
    """A model and what belongs to it."""

    model: nn.Module
    tokenizer: Any
    notes: list[str]
    """what the user should know of how it was made"""


def build(config: TrainConfig, class_names: Sequence[str], texts: Sequence[str]) -> Classifier:
    """Return the model that `config` names, its new weights drawn from torch's global generator.

    Args:
        config: model, dropout, frozen layers.
        class_names: of the K classes.
        texts: the training reviews, from which `tiny` learns its vocabulary.

    Raises:
        DataError: the model cannot be had, or does not fit.
        UsageError: max_length or num_frozen_layers is more than the model has.
    """
    notes: list[str] = []
    if config.model == "tiny":
        tokenizer = train_tokenizer(texts, config)
        model = AutoModelForSequenceClassification.from_config(tiny_config(config, tokenizer, class_names))
    else:
        model, tokenizer = load_pretrained(config, class_names, notes)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", config.max_length))
    if config.max_length > limit:
        raise UsageError(f"error: max_length: {config.max_length} is not allowed: {config.model} takes {limit} tokens")
    layers = layers_of(model)
    if config.num_frozen_layers > len(layers):
        raise UsageError(
            f"error: num_frozen_layers: {config.num_frozen_layers} is not allowed: {config.model} has {len(layers)}, "
            "embeddings included"
        )
    for layer in layers[: config.num_frozen_layers]:
        layer.requires_grad_(False)
    return Classifier(model, tokenizer, notes)


def tiny_config(config: TrainConfig, tokenizer: Any, class_names: Sequence[str]) -> ModernBertConfig:
    """Return the settings of a small ModernBERT; heads are 32 wide, and every other layer looks 8 tokens far."""
    settings = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.hidden_size // 32,
        intermediate_size=2 * config.hidden_size,
        max_position_embeddings=config.max_length,
        local_attention=16,
        global_attn_every_n_layers=2,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **_classes(class_names),
    )
    _set_dropout(settings, TINY_DROPOUT if config.dropout is None else config.dropout)
    return settings


def train_tokenizer(texts: Sequence[str], config: TrainConfig) -> Any:
    """Return a tokenizer like BERT's, in lower case, whose vocabulary is the most frequent words and all letters.

    A word that is not in it falls into its letters. The trainers of the tokenizers library would find longer pieces,
    but others each time (version 0.23), where every process, and a run that is continued, has to come to the same.
    """
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for word, _ in words.pre_tokenize_str(normalizer.normalize_str(clean(text)))
    )
    letters = sorted({letter for word in counts for letter in word})
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *frequent])
    vocabulary = {piece: index for index, piece in enumerate(list(pieces)[: config.vocab_size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.decoder = decoders.WordPiece()
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=config.max_length, **names)


def load_pretrained(config: TrainConfig, class_names: Sequence[str], notes: list[str]) -> tuple[Any, Any]:
    """Return a pretrained encoder with a head for these classes, and its tokenizer, from the Hub or a folder.

    Raises:
        DataError: it cannot be had, or is no encoder that classifies texts.
    """
    name, folder = config.model, Path(config.model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DataError(f"error: --model {name}: the folder has no config.json: it holds no model of transformers")
        options: dict[str, Any] = {"local_files_only": True}
    else:
        options = {"local_files_only": is_offline()}
        say(f"looking for {name} in the cache of the Hugging Face Hub{'' if is_offline() else ' and on the Hub'}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # of transformers, tokenizers, safetensors or the Hub: each has its own
        raise _cannot_have(name, "tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without files, transformers makes a tokenizer to which every word is unknown, and says nothing.
        raise _cannot_have(name, "tokenizer", OSError("no vocabulary found."))
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise DataError(
            f"error: --model {name}: its tokenizer cannot pad or is not a fast one; an encoder such as BERT, "
            "DistilBERT or RoBERTa is wanted"
        )
    try:
        settings = AutoConfig.from_pretrained(name, **_classes(class_names), **options)
    except Exception as error:
        raise _cannot_have(name, "config", error) from error
    if type(settings) not in AutoModelForSequenceClassification._model_mapping:
        raise DataError(f"error: --model {name}: a model of type {settings.model_type} does not classify texts")
    if config.dropout is not None:
        _set_dropout(settings, config.dropout)
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=settings,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other classes than these is replaced
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise _cannot_have(name, "weights", error) from error
    fresh = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    inside = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if inside:
        raise DataError(
            f"error: --model {name}: its weights lack {len(inside)} tensors of the encoder, such as {min(inside)}"
        )
    if fresh:
        notes.append(f"new weights on top of the pretrained ones: {', '.join(sorted(fresh))}")
    return model, tokenizer


def load_trained(folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer that a run has saved; raises DataError if they cannot be read."""
    try:
        return (
            AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
    except Exception as error:  # as above
        raise DataError(f"error: {folder}: cannot be read as a model of transformers: {_first_line(error)}") from error


def layers_of(model: Any) -> list[nn.Module]:
    """Return the embeddings and the layers of an encoder, lowest first, whatever its class calls them."""
    base = model.base_model
    stacks = [
        module
        for module in base.modules()
        if isinstance(module, nn.ModuleList) and len(module) == base.config.num_hidden_layers
    ]
    return [base.embeddings, *stacks[0]]


def _set_dropout(settings: Any, probability: float) -> None:
    for name, value in settings.to_dict().items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(settings, name, probability)


def _classes(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }


def _cannot_have(name: str, what: str, error: Exception) -> DataError:
    where = "in this folder" if Path(name).is_dir() else "in the cache or on the Hugging Face Hub"
    return DataError(
        f"error: --model {name}: no {what} to be had {where}: {_first_line(error)} "
        "What to do: --model FOLDER with config.json, weights and the files of the tokenizer, or --model tiny."
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
