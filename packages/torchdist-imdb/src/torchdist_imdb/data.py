"""From reviews to token ids: cleaned, tokenised once before training, kept in one flat tensor."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from trainyard_shared.datasets.imdb import ReviewDataset, clean, load_imdb, load_sample
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.lengths import Sequences

from torchdist_imdb.config import TrainConfig

CHUNK = 1000  # texts tokenised at once: the Python lists of more would take gigabytes


def load(config: TrainConfig) -> ReviewDataset:
    """Return the generated sample or the real reviews; raises DataError if they cannot be had."""
    if config.data == "sample":
        dataset = load_sample(0, config.num_sample_reviews, config.num_sample_reviews // 5)
    else:
        folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
        dataset = load_imdb(Path(folder) if folder else None)
    total = len(dataset.test_texts)
    if config.num_test is None or config.num_test >= total:
        return dataset
    # In the order of their checksums, as they come, any stretch of the reviews is a fair sample.
    return dataclasses.replace(
        dataset,
        test_texts=dataset.test_texts[: config.num_test],
        test_labels=dataset.test_labels[: config.num_test],
        notes=(
            *dataset.notes,
            f"tested on the first {config.num_test:,} of {total:,} test reviews, ordered by checksum",
        ),
    )


def split(dataset: ReviewDataset, config: TrainConfig) -> tuple[slice, slice]:
    """Return where the reviews for training and for validation stand among the training reviews.

    They come in the order of checksums of their texts, so any stretch is a fair sample, and copies of a review are
    neighbours: they do not end up on both sides (but for those right at the border).

    Raises:
        UsageError: there are fewer reviews than are asked for.
    """
    total = len(dataset.train_texts)
    if config.num_val >= total:
        raise UsageError(f"error: num_val: {config.num_val} is not allowed: there are {total} training reviews")
    if config.num_train is not None and config.num_val + config.num_train > total:
        raise UsageError(
            f"error: num_train: {config.num_train} is not allowed: of {total} training reviews, {config.num_val} are "
            "held out"
        )
    end = total if config.num_train is None else config.num_val + config.num_train
    return slice(config.num_val, end), slice(0, config.num_val)


class Encoder:
    """Turns texts into ids, cut to a length: beginning, end, or both ends of a long text are kept.

    Reviews often sum up at the end, which `head` loses; `head_tail` keeps a quarter at the beginning and the rest at
    the end, the 128 + 382 of 512 tokens that were best on IMDb in Sun et al. (2019), arXiv 1905.05583.

    Args:
        tokenizer: fast tokenizer of transformers.
        config: max_length and truncation.
    """

    def __init__(self, tokenizer: Any, config: TrainConfig) -> None:
        self.tokenizer = tokenizer
        # What this tokenizer puts before and behind a text: [CLS] and [SEP], or <s> and </s>.
        marked = tokenizer("a", return_special_tokens_mask=True)
        ids, special = marked["input_ids"], marked["special_tokens_mask"]
        first, last = special.index(0), len(special) - special[::-1].index(0)
        self.before, self.behind = ids[:first], ids[last:]
        room = config.max_length - len(self.before) - len(self.behind)
        self.head = {"head": room, "tail": 0, "head_tail": room // 4}[config.truncation]
        self.tail = room - self.head

    def __call__(self, texts: Sequence[str]) -> tuple[Sequences, Tensor]:
        """Return the ids of raw texts, cleaned first, and how many tokens of each were cut out, (N,) int64."""
        parts, cut = [Sequences.from_lists([])], []
        for start in range(0, len(texts), CHUNK):
            cleaned = [clean(text) for text in texts[start : start + CHUNK]]
            encoded = self.tokenizer(
                cleaned,
                add_special_tokens=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # no warning that a text is too long for the model: it is about to be cut
            )["input_ids"]
            parts.append(Sequences.from_lists([self._cut(ids) for ids in encoded]))
            cut += [max(0, len(ids) - self.head - self.tail) for ids in encoded]
        return Sequences.joined(parts), torch.tensor(cut, dtype=torch.int64)

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) > self.head + self.tail:
            ids = ids[: self.head] + ids[len(ids) - self.tail :]
        return [*self.before, *ids, *self.behind]


def encode_together(encoder: Encoder, texts: Sequence[str]) -> Sequences:
    """[dist] Tokenise in all processes, a share each, and give everybody the whole."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    bounds = [len(texts) * i // world_size for i in range(world_size + 1)]
    own, _ = encoder(texts[bounds[rank] : bounds[rank + 1]])
    parts: list = [None] * world_size
    dist.all_gather_object(parts, (own.ids, own.lengths))
    return Sequences.joined([Sequences(ids, lengths) for ids, lengths in parts])
