"""Evaluation over several processes that counts every sample exactly once."""

from collections.abc import Iterator

import torch
import torch.distributed as dist


def shard_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[torch.Tensor]:
    """Yield index batches of this rank's share: every sample belongs to exactly one rank, none is repeated.

    `DistributedSampler` repeats samples until all shares have the same length. Training needs that, since every
    process must join each all-reduce; in evaluation it would count some samples twice and shift the result.
    """
    mine = torch.arange(num_samples)[rank::world_size]
    yield from mine.split(batch_size) if len(mine) else ()


def gather_in_order(values: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Put together per-sample results of all ranks, computed on the shares of `shard_batches`, in sample order.

    Args:
        values: (n, ...) results of this rank's samples, in the order of its batches.
        num_samples: size N of the whole set.

    Returns:
        (N, ...) on the CPU, the same on every rank.
    """
    values = values.cpu()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    whole = torch.empty((num_samples, *values.shape[1:]), dtype=values.dtype)
    for owner, part in enumerate(parts):
        whole[owner :: len(parts)] = part
    return whole
