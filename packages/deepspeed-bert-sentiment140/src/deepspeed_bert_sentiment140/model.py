"""Encoders of the transformers library with a head for classes of tweets. Nothing here imports DeepSpeed.

A pretrained BERT, DistilBERT or RoBERTa comes by its name on the Hugging Face Hub or from a folder; `tiny` is a small
BERT made here, with a vocabulary learned from the training tweets, so that everything can be tried offline.

`stages` cuts any of them into the list of layers that a pipeline is made of. Letters: B tweets, W tokens, D width of
the model, K classes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.errors import DataError, UsageError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from deepspeed_bert_sentiment140.config import TrainConfig

TINY_DROPOUT = 0.1
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Its bars and reports speak of what is normal here: a new head on an old encoder.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def get_tokenizer(config: TrainConfig, texts: Iterable[str]) -> Any:
    """Return the tokenizer of the model that `config` names.

    Args:
        config: model, max_length.
        texts: cleaned training tweets, from which `tiny` learns its vocabulary; not looked at for other models.

    Raises:
        DataError: it cannot be had, or does not fit.
        UsageError: max_length is more than the model takes.
    """
    if config.model == "tiny":
        return train_tokenizer(texts, config)
    name, options = config.model, _options(config.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # of transformers, tokenizers, safetensors or the Hub: each has its own
        raise _cannot_have(name, "tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without files, transformers makes a tokenizer to which every word is unknown, and says nothing.
        raise _cannot_have(name, "tokenizer", OSError("no vocabulary found."))
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise DataError(
            f"error: --model {name}: its tokenizer cannot pad or is not fast; BERT, DistilBERT or RoBERTa is wanted"
        )
    if config.max_length > tokenizer.model_max_length:
        raise UsageError(
            f"error: max_length: {config.max_length} is not allowed: {name} takes {tokenizer.model_max_length} tokens"
        )
    return tokenizer


def build(config: TrainConfig, class_names: Sequence[str], tokenizer: Any) -> tuple[Any, list[str]]:
    """Return the model that `config` names, new weights drawn from torch's generator, and what to know of it.

    Raises:
        DataError: the model cannot be had, or does not fit.
        UsageError: num_frozen_layers is more than the model has.
    """
    notes: list[str] = []
    if config.model == "tiny":
        model = AutoModelForSequenceClassification.from_config(tiny_config(config, tokenizer, class_names))
    else:
        model = load_pretrained(config, class_names, notes)
    layers = layers_of(model)
    if config.num_frozen_layers > len(layers):
        raise UsageError(
            f"error: num_frozen_layers: {config.num_frozen_layers} is not allowed: {config.model} has {len(layers)}, "
            "embeddings included"
        )
    for layer in layers[: config.num_frozen_layers]:
        layer.requires_grad_(False)
    return model, notes


def tiny_config(config: TrainConfig, tokenizer: Any, class_names: Sequence[str]) -> BertConfig:
    """Return the settings of a small BERT (Devlin et al. 2019, arXiv 1810.04805) with two attention heads."""
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=2,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_length,
        pad_token_id=tokenizer.pad_token_id,
        **_classes(class_names),
    )
    _set_dropout(settings, TINY_DROPOUT if config.dropout is None else config.dropout)
    return settings


def train_tokenizer(texts: Iterable[str], config: TrainConfig) -> Any:
    """Return a tokenizer like BERT's, in lower case, whose vocabulary is the most frequent words and all letters.

    A word that is not in it falls into its letters. The trainers of the tokenizers library would find longer pieces,
    but others each time (version 0.23), where every process, and a run that is continued, has to come to the same.
    """
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text)))
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


def load_pretrained(config: TrainConfig, class_names: Sequence[str], notes: list[str]) -> Any:
    """Return a pretrained encoder with a head for these classes, from the Hub or a folder.

    Raises:
        DataError: it cannot be had, or is no encoder that classifies texts.
    """
    name, options = config.model, _options(config.model)
    try:
        settings = AutoConfig.from_pretrained(name, **_classes(class_names), **options)
    except Exception as error:
        raise _cannot_have(name, "config", error) from error
    if settings.model_type not in HEADS:
        raise DataError(
            f"error: --model {name}: a model of type {settings.model_type}; BERT, DistilBERT or RoBERTa is wanted"
        )
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
    return model


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


def stages(model: Any) -> list[nn.Module]:
    """Return the model as a list of layers, each taking what the one before gives: the parts of a pipeline.

    They share their parameters with `model`. The first takes ids (B, W) and mask (B, W), the last gives logits (B, K).
    """
    embeddings, *layers = layers_of(model)
    return [Embed(embeddings), *map(Encode, layers), Classify(model)]


class Embed(nn.Module):
    """The embeddings, as first layer of a pipeline."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take ids and mask, (B, W) each, and give hidden states (B, W, D) and the mask."""
        ids, mask = inputs
        return self.embeddings(input_ids=ids), mask


class Encode(nn.Module):
    """One layer of the encoder; it hands on the mask, which the next one needs as well."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take hidden states (B, W, D) and mask (B, W), and give the same."""
        hidden, mask = inputs
        # The mask travels as whole numbers: for everything else DeepSpeed would want a gradient.
        return self.layer(hidden, attention_mask=mask.bool()[:, None, None]), mask


class Classify(nn.Module):
    """The head, as last layer of a pipeline."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.kind = model.config.model_type
        self.parts = nn.ModuleDict(HEADS[self.kind](model))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Take hidden states (B, W, D) and mask, and give logits (B, K)."""
        hidden, _ = inputs
        parts = self.parts
        if self.kind == "roberta":
            return parts["classifier"](hidden)
        if self.kind == "distilbert":
            pooled = F.relu(parts["pre_classifier"](hidden[:, 0]))
        else:
            pooled = parts["pooler"](hidden)
        return parts["classifier"](parts["dropout"](pooled))


# What stands on the encoder, by type of model.
HEADS: dict[str, Callable[[Any], dict[str, nn.Module]]] = {
    "bert": lambda m: {"pooler": m.bert.pooler, "dropout": m.dropout, "classifier": m.classifier},
    "distilbert": lambda m: {"pre_classifier": m.pre_classifier, "dropout": m.dropout, "classifier": m.classifier},
    "roberta": lambda m: {"classifier": m.classifier},
}


def _options(name: str) -> dict[str, Any]:
    """Return where transformers may look for the model of this name; raises DataError for a folder without one."""
    if not Path(name).is_dir():
        return {"local_files_only": is_offline()}
    if not (Path(name) / "config.json").is_file():
        raise DataError(f"error: --model {name}: the folder has no config.json: it holds no model of transformers")
    return {"local_files_only": True}


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
