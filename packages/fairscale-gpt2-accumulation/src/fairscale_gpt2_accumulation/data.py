"""From WikiText-2 to blocks of tokens; every token is predicted once an epoch, by any number of processes."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trainyard_shared.datasets.wikitext import (
    SPLITS,
    Form,
    Split,
    TextDataset,
    articles,
    load_sample,
    load_wikitext,
)
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.lengths import LengthBatches, Sequences

from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.model import IGNORED


class Texts(NamedTuple):
    """What is trained on, chosen by, and tested on, each as published."""

    train: str
    val: str
    test: str


def load(config: TrainConfig) -> TextDataset:
    """Return the generated sample or the real texts; raises DataError if they cannot be had."""
    if config.data == "sample":
        return load_sample(0, config.num_sample_articles)
    splits: tuple[Split, ...] = SPLITS if config.train_on == "train" else ("valid", "test")
    return load_real(config.data_dir, config.form, splits)


def load_real(folder: Path | None, form: Form, splits: tuple[Split, ...]) -> TextDataset:
    """Return some of the real texts from a folder, TRAINYARD_DATA_DIR, or the cache that is filled from the Hub."""
    named = folder or os.environ.get("TRAINYARD_DATA_DIR")
    return load_wikitext(Path(named) if named else None, form, splits)


def split(dataset: TextDataset, config: TrainConfig) -> Texts:
    """Divide the texts; where the valid text is trained on, whole articles of it are held out.

    Raises:
        UsageError: there are no more articles than are to be held out.
    """
    test = dataset.texts["test"]
    if config.train_on == "train":
        return Texts(dataset.texts["train"], dataset.texts["valid"], test)
    parts = articles(dataset.texts["valid"])
    if config.num_val_articles >= len(parts):
        raise UsageError(
            f"error: num_val_articles: {config.num_val_articles} is not allowed: the valid text has {len(parts)} "
            "articles"
        )
    # Always the same ones, whatever the seed of the run.
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = set(order[: config.num_val_articles])
    train, val = (
        "".join(part for i, part in enumerate(parts) if (i in held_out) is is_val) for is_val in (False, True)
    )
    return Texts(train, val, test)


def detokenized(text: str) -> str:
    """Undo the tokenisation of the published text, as well as can be: the form in which GPT-2's paper tested.

    WikiText sets apart punctuation by spaces and writes ` @-@ `, ` @,@ ` and ` @.@ ` for what stood between two parts
    of a word or number.
    """
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([.,:;!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£]) ", r"\1", text)
    text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"(?<= )' ([^'\n]*?) '(?= )", r"'\1'", text)
    text = re.sub(r"s '(?= )", "s'", text)
    text = re.sub(r"(?m)^ ((?:= )+)(.*?)((?: =)+) $", _heading, text)
    return re.sub(r"(?m)^ | $", "", text)


def _heading(match: re.Match[str]) -> str:
    before, title, behind = match.groups()
    return f"{before.replace(' ', '')} {title.strip()} {behind.replace(' ', '')}"


def encode(tokenizer: Any, text: str, detokenize: bool) -> Tensor:
    """Return the tokens of a text, (N,) int64."""
    text = detokenized(text) if detokenize else text
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def blocks(tokenizer: Any, text: str, config: TrainConfig) -> Sequences:
    """Return a text cut into blocks of context_length + 1 tokens, the last of each piece of text shorter.

    A block repeats the last token of the one before, as the one from which its first is predicted; the first of all
    is predicted from the end-of-text token.
    """
    pieces = articles(text) if config.packing == "article" else [text]
    found: list[list[int]] = []
    for piece in pieces:
        tokens = [tokenizer.bos_token_id, *encode(tokenizer, piece, config.detokenize).tolist()]
        starts = range(0, len(tokens) - 1, config.context_length)
        found += [tokens[start : start + config.context_length + 1] for start in starts]
    return Sequences.from_lists(found)


class Order:
    """Which blocks each process takes for each micro-batch of each step, and how many tokens a step has in all.

    The blocks of a step are the same however many processes and micro-batches share them.

    Args:
        blocks: of the training text.
        config: batch sizes, seed; with AdaScale the rest of an epoch that fills no step is left out, since it takes the
            same number of gradients at each step.
        rank: this process.
        world_size: all processes.
    """

    def __init__(self, blocks: Sequences, config: TrainConfig, rank: int, world_size: int) -> None:
        self.blocks = blocks
        self.global_batch_size = config.micro_batch_size * config.gradient_accumulation_steps * world_size
        if self.global_batch_size > len(blocks):
            raise UsageError(
                f"error: micro_batch_size x gradient_accumulation_steps x processes = {config.micro_batch_size} x "
                f"{config.gradient_accumulation_steps} x {world_size} = {self.global_batch_size} blocks, but there are "
                f"only {len(blocks)} training blocks"
            )
        # window=1: any blocks may meet in a step; within it they are dealt out by length.
        self.batches = LengthBatches(
            blocks.lengths, self.global_batch_size, config.micro_batch_size, rank, world_size, config.seed, window=1
        )
        self.whole_steps_only = config.adascale
        rest = len(blocks) % self.global_batch_size if self.whole_steps_only else 0
        self.blocks_per_epoch = len(blocks) - rest
        self.steps_per_epoch = -(-self.blocks_per_epoch // self.global_batch_size)

    def steps(self, epoch: int, used: int) -> list[Tensor]:
        """Return the blocks of each step that is left of an epoch of which `used` blocks are used, (G,) each."""
        steps = self.batches.global_batches(epoch)[: self.steps_per_epoch]
        return steps[used // self.global_batch_size :]

    def num_tokens(self, step: Tensor) -> int:
        """Return how many tokens all processes together predict in a step."""
        return int((self.blocks.lengths[step] - 1).sum())


def micro_batch(blocks: Sequences, index: Tensor, fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T) of some blocks; `fill` stands behind the end of the shorter ones."""
    ids, mask = blocks.padded(index, fill, device)  # (B, T + 1)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~mask[:, 1:], IGNORED)
    return inputs, targets
