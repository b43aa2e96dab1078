"""Sequences of many lengths in batches with little padding: the same batches for any number of processes.

An epoch is a permutation drawn from (seed, epoch). It is cut into windows; within a window samples are sorted by
length, cut into global batches, and the batches are shuffled. So the samples of a step have similar lengths, while
from step to step lengths come in any order. A global batch has the same samples whoever computes it: processes deal
it out among themselves, long and short alike, so that nobody waits for somebody with longer ones.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sequences:
    """Token ids of many sequences in one flat tensor: no object, and no padding, for each of them.

    Args:
        ids: (T,) int32, the sequences one behind the other.
        lengths: (N,) int64, sum T; on the CPU.
    """

    def __init__(self, ids: Tensor, lengths: Tensor) -> None:
        if len(ids) != int(lengths.sum()):
            raise ValueError(f"{len(ids)} ids do not go with lengths that add up to {int(lengths.sum())}")
        self.ids, self.lengths = ids, lengths
        self.starts = lengths.cumsum(0) - lengths

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]]) -> "Sequences":
        """Make it of one list of ids for each sequence."""
        flat = [token for sequence in sequences for token in sequence]
        return cls(torch.tensor(flat, dtype=torch.int32), torch.tensor([len(s) for s in sequences], dtype=torch.int64))

    @classmethod
    def joined(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """Put the sequences of all parts one behind the other."""
        return cls(torch.cat([part.ids for part in parts]), torch.cat([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(
        self, index: Tensor, pad_id: int, device: torch.device, *, multiple_of: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """Return chosen sequences as a matrix, and which of its elements are real.

        Args:
            index: (B,) which sequences.
            pad_id: fills up the shorter ones, on the right.
            device: where the result is wanted.
            multiple_of: the width is the longest length rounded up to a multiple of this.

        Returns:
            ids (B, W) int64, and a mask (B, W) bool, which is None if nothing is padded: attention is faster without.
        """
        lengths = self.lengths[index]
        width = -(-int(lengths.max()) // multiple_of) * multiple_of
        column = torch.arange(width)
        mask = column < lengths[:, None]
        places = (self.starts[index, None] + column).clamp_(max=len(self.ids) - 1)
        ids = torch.where(mask, self.ids[places], pad_id).long()
        return ids.to(device, non_blocking=True), None if mask.all() else mask.to(device, non_blocking=True)


class MicroBatch(NamedTuple):
    """What one process computes in one forward and backward pass."""

    index: Tensor
    """(B,) which samples"""
    weight: float
    """1; or 0 if none were left for this process, which then keeps step with a sample that somebody else counts"""


class LengthBatches:
    """Which samples each process takes for each micro-batch of each step.

    Args:
        lengths: (N,) int64 on the CPU, tokens of each sample.
        global_batch_size: samples of a step, of all processes together; the last step of an epoch has what is left.
        micro_batch_size: most samples of a process in one pass. What a step has more is done in several.
        rank: this process.
        world_size: all processes.
        seed: of the order.
        max_tokens: most tokens of a pass, with padding; a longer sample gets a pass of its own. None for no limit.
        multiple_of: lengths count as padded to a multiple of this.
        window: global batches among which samples are sorted by length. More make less padding, but batches that are
            less mixed.
    """

    def __init__(
        self,
        lengths: Tensor,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        *,
        max_tokens: int | None = None,
        multiple_of: int = 1,
        window: int = 50,
    ) -> None:
        self.lengths = (lengths + multiple_of - 1) // multiple_of * multiple_of
        self.global_batch_size, self.micro_batch_size, self.max_tokens = global_batch_size, micro_batch_size, max_tokens
        self.rank, self.world_size, self.seed, self.window = rank, world_size, seed, window

    def num_steps(self, used: int = 0) -> int:
        """Steps left in an epoch of which `used` samples are used."""
        return -(-(len(self.lengths) - used) // self.global_batch_size)

    def global_batches(self, epoch: int) -> list[Tensor]:
        """Return the samples of each step of an epoch, (B,) each, longest first: the same on every process."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[Tensor] = []
        for samples in order.split(self.window * self.global_batch_size):
            by_length = samples[self.lengths[samples].argsort(descending=True, stable=True)]
            # What fills no batch are the shortest samples of the last window. They come last of all, so that the number
            # of samples used tells how many steps are done.
            *whole, rest = by_length.split(self.global_batch_size)
            if len(rest) == self.global_batch_size:
                whole.append(rest)
            batches += [whole[i] for i in torch.randperm(len(whole), generator=generator)]
            if len(rest) < self.global_batch_size:
                batches.append(rest)
        return batches

    def epoch(self, epoch: int, used: int = 0) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Yield, for each step that is left of an epoch, its number of samples and this process's micro-batches.

        All processes have the same number of micro-batches in a step.
        """
        for samples in self.global_batches(epoch)[used // self.global_batch_size :]:
            yield len(samples), list(self.share(samples))

    def share(self, samples: Tensor) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of a global batch, which is sorted by length, longest first."""
        while len(samples):
            each = self.micro_batch_size
            if self.max_tokens is not None:
                each = min(each, max(1, self.max_tokens // int(self.lengths[samples[0]])))
            now, samples = samples[: each * self.world_size], samples[each * self.world_size :]
            # One by one, as cards are dealt: everybody gets the same mixture of lengths.
            mine = now[self.rank :: self.world_size]
            yield MicroBatch(mine, 1.0) if len(mine) else MicroBatch(now[-1:], 0.0)
