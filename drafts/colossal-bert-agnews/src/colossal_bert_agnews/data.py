"""From news articles to token ids: cleaned if asked for, augmented anew in each epoch if asked for, tokenised."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trainyard_shared.datasets.ag_news import NewsDataset, clean, load_ag_news, load_sample
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.lengths import Sequences

from colossal_bert_agnews.config import TrainConfig

CHUNK = 1000  # texts tokenised at once: the Python lists of more would take gigabytes


def load(config: TrainConfig) -> NewsDataset:
    """Return the generated sample or the real articles, cleaned as the config says.

    Raises:
        DataError: they cannot be had; or the file, the line and what is wrong there.
    """
    if config.data == "sample":
        dataset = load_sample(0, config.num_sample_articles, config.num_sample_articles // 5)
    else:
        folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
        dataset = load_ag_news(Path(folder) if folder else None)
    notes = list(dataset.notes)
    total = len(dataset.test_texts)
    # In the order of their checksums, as they come, any stretch of the articles is a fair sample.
    tested = slice(0, config.num_test)
    if config.num_test is not None and config.num_test < total:
        notes.append(f"tested on the first {config.num_test:,} of {total:,} test articles, ordered by checksum")
    return dataclasses.replace(
        dataset,
        train_texts=prepared(dataset.train_texts, config),
        test_texts=prepared(dataset.test_texts[tested], config),
        test_labels=dataset.test_labels[tested],
        notes=tuple(notes),
    )


def split(dataset: NewsDataset, config: TrainConfig) -> tuple[slice, slice]:
    """Return where the articles for training and for validation stand among the training articles.

    They come in the order of checksums of their texts, so any stretch is a fair sample, and copies of an article are
    neighbours: they do not end up on both sides (but for those right at the border).

    Raises:
        UsageError: there are fewer articles than are asked for.
    """
    total = len(dataset.train_texts)
    if config.num_val >= total:
        raise UsageError(f"error: num_val: {config.num_val} is not allowed: there are {total} training articles")
    if config.num_train is not None and config.num_val + config.num_train > total:
        raise UsageError(
            f"error: num_train: {config.num_train} is not allowed: of {total} training articles, {config.num_val} are "
            "held out"
        )
    end = total if config.num_train is None else config.num_val + config.num_train
    return slice(config.num_val, end), slice(0, config.num_val)


def prepared(texts: Sequence[str], config: TrainConfig) -> list[str]:
    """Return the texts with the rules applied that the config asks for; without any, as they are."""
    texts = list(texts)
    if config.clean:
        texts = [clean(text) for text in texts]
    if config.remove_stop_words:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # a second to import: only who asks pays

        kept = [[word for word in text.split() if word.lower() not in ENGLISH_STOP_WORDS] for text in texts]
        # An article of nothing but stop words stays as it is.
        texts = [" ".join(words) if words else text for words, text in zip(kept, texts, strict=True)]
    return texts


def encode(texts: Sequence[str], tokenizer: Any, config: TrainConfig) -> Sequences:
    """Return the ids of the texts, cut to max_length, with the marks of both ends."""
    parts = [Sequences.from_lists([])]
    for start in range(0, len(texts), CHUNK):
        encoded = tokenizer(
            list(texts[start : start + CHUNK]),
            truncation=True,
            max_length=config.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        parts.append(Sequences.from_lists(encoded))
    return Sequences.joined(parts)


def labels_of(labels: Any) -> torch.Tensor:
    """Return labels (N,) as an int64 tensor."""
    return torch.from_numpy(labels)
