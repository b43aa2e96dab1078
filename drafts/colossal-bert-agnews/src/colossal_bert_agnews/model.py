"""Encoders of the transformers library with a head for classes of articles. Nothing here imports Colossal-AI.

A pretrained BERT, RoBERTa or DistilBERT comes by its name on the Hugging Face Hub or from a folder; `tiny` is a small
BERT made here, with a vocabulary learned from the training articles, so that everything can be tried offline.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.errors import DataError, UsageError

from colossal_bert_agnews.config import TrainConfig
from colossal_bert_agnews.layout import VOCABULARY_MULTIPLE, Layout
from colossal_bert_agnews.quick_import import without_compiler

with without_compiler():
    import transformers
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig
    from transformers.models.bert import modeling_bert as _modeling  # noqa: F401 - otherwise imported when asked for

TINY_DROPOUT = 0.1
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KINDS = ("bert", "roberta", "distilbert")
WORDS = "bert.embeddings.word_embeddings.weight"

# Its bars and reports speak of what is normal here: a new head on an old encoder.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def get_settings(config: TrainConfig, class_names: Sequence[str]) -> Any:
    """Return transformers' config of the model that `config` names; of `tiny`, its vocabulary is still to come.

    Raises:
        DataError: it cannot be had, or is of another kind than `KINDS`.
    """
    classes = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }
    if config.model == "tiny":
        settings = BertConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.max_length,
            **classes,
        )
        _set_dropout(settings, TINY_DROPOUT if config.dropout is None else config.dropout)
        return settings
    try:
        settings = AutoConfig.from_pretrained(config.model, **classes, **_options(config.model))
    except DataError:
        raise
    except Exception as error:  # of transformers or the Hub: each has its own
        raise _cannot_have(config.model, "config", error) from error
    if settings.model_type not in KINDS:
        raise DataError(
            f"error: --model {config.model}: a model of type {settings.model_type}; BERT, RoBERTa or DistilBERT is "
            "wanted"
        )
    if config.dropout is not None:
        _set_dropout(settings, config.dropout)
    return settings


def get_tokenizer(config: TrainConfig, texts: Iterable[str]) -> Any:
    """Return the tokenizer of the model that `config` names.

    Args:
        config: model, max_length.
        texts: training articles, from which `tiny` learns its vocabulary; not looked at for other models.

    Raises:
        DataError: it cannot be had, or does not fit.
        UsageError: max_length is more than the model takes.
    """
    if config.model == "tiny":
        return train_tokenizer(texts, config)
    name = config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **_options(name))
    except DataError:
        raise
    except Exception as error:  # of transformers, tokenizers or the Hub: each has its own
        raise _cannot_have(name, "tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without files, transformers makes a tokenizer to which every word is unknown, and says nothing.
        raise _cannot_have(name, "tokenizer", OSError("no vocabulary found."))
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise DataError(
            f"error: --model {name}: its tokenizer cannot pad or is not fast; BERT, RoBERTa or DistilBERT is wanted"
        )
    if config.max_length > tokenizer.model_max_length:
        raise UsageError(
            f"error: max_length: {config.max_length} is not allowed: {name} takes {tokenizer.model_max_length} tokens"
        )
    return tokenizer


def build(config: TrainConfig, settings: Any, tokenizer: Any) -> tuple[Any, list[str]]:
    """Return the model that `config` names, new weights drawn from torch's generator, and what to know of it.

    Args:
        config: model.
        settings: of `get_settings`.
        tokenizer: of `get_tokenizer`.

    Raises:
        DataError: the model cannot be had, or does not fit.
    """
    name = config.model
    if name == "tiny":
        settings.vocab_size, settings.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        return AutoModelForSequenceClassification.from_config(settings), []
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=settings,
            torch_dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other classes than these is replaced
            output_loading_info=True,
            **_options(name),
        )
    except Exception as error:
        raise _cannot_have(name, "weights", error) from error
    fresh = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    inside = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if inside:
        raise DataError(
            f"error: --model {name}: its weights lack {len(inside)} tensors of the encoder, such as {min(inside)}"
        )
    return model, [f"new weights on top of the pretrained ones: {', '.join(sorted(fresh))}"] if fresh else []


def fill_up_vocabulary(model: Any, layout: Layout) -> None:
    """Add words that no text has to a BERT, so that processes can share its vocabulary in equal parts.

    Colossal-AI would fill it up by itself, but then cannot save the optimizer's state of the words that are none.
    """
    if model.config.model_type == "bert":
        multiple = math.lcm(VOCABULARY_MULTIPLE, 64 * layout.tp)
        state = torch.get_rng_state()
        model.resize_token_embeddings(pad_to_multiple_of=multiple, mean_resizing=False)
        torch.set_rng_state(state)


def train_tokenizer(texts: Iterable[str], config: TrainConfig) -> Any:
    """Return a tokenizer like BERT's, in lower case, whose vocabulary is the most frequent words and all letters.

    A word that is not in it falls into its letters. The trainers of the tokenizers library would find longer pieces,
    but others each time, where every process, and a run that is continued, has to come to the same.
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


def load_trained(folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer that a run has saved; raises DataError if they cannot be read."""
    try:
        return (
            AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
    except Exception as error:  # as above
        raise DataError(f"error: {folder}: cannot be read as a model of transformers: {_first_line(error)}") from error


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


def _cannot_have(name: str, what: str, error: Exception) -> DataError:
    where = "in this folder" if Path(name).is_dir() else "in the cache or on the Hugging Face Hub"
    return DataError(
        f"error: --model {name}: no {what} to be had {where}: {_first_line(error)} "
        "What to do: --model FOLDER with config.json, weights and the files of the tokenizer, or --model tiny."
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
