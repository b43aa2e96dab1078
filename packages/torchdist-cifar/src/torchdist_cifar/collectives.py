"""The collectives that training is made of: what each rank holds before and after, and how fast they are here.

Every process runs this file. It goes through six collectives, checks on every rank that the result is what it must be,
shows a tiny example as a table, and measures the bandwidth for messages from 1 KiB to 64 MiB.

In the pictures of the docstrings each row is a rank, each letter a chunk of a tensor:

    before      after
    A B         A B         rank 0
    . .   ->    A B         rank 1
"""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from trainyard_shared import launch, plotting
from trainyard_shared.console import bytes_text, preflight, say
from trainyard_shared.errors import TrainyardError
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, write_atomically
from trainyard_shared.tensors.quick_start import postpone_dynamo

from torchdist_cifar.config import CollectivesConfig

PACKAGE = "torchdist-cifar"
ELEMENT_BYTES = torch.float32.itemsize
CHECKED_CHUNK = 1000  # elements: several packets, and no power of 2
MAX_REPEATS = 200


# ------------------------------------------------------------------------------------------------- the six collectives


def broadcast(mine: Tensor) -> Tensor:
    """Everybody gets rank 0's tensor. So all ranks start from the same weights.

    A B         A B
    . .   ->    A B
    """
    dist.broadcast(mine, src=0)
    return mine


def scatter(mine: Tensor) -> Tensor:
    """Each rank gets its chunk of rank 0's tensor. So one process that has the data shares them out.

    A B         A
    . .   ->    B
    """
    chunk = mine.new_empty(len(mine) // dist.get_world_size())
    dist.scatter(chunk, list(mine.chunk(dist.get_world_size())) if dist.get_rank() == 0 else None, src=0)
    return chunk


def gather(mine: Tensor) -> Tensor:
    """Rank 0 gets the chunks of all. So it collects random states for a checkpoint.

    A           A B
    B     ->    . .
    """
    whole = mine.new_empty(len(mine) * dist.get_world_size() if dist.get_rank() == 0 else 0)
    dist.gather(mine, list(whole.chunk(dist.get_world_size())) if dist.get_rank() == 0 else None, dst=0)
    return whole


def all_gather(mine: Tensor) -> Tensor:
    """Everybody gets the chunks of all. So sharded weights become whole before a layer computes.

    A           A B
    B     ->    A B
    """
    whole = mine.new_empty(len(mine) * dist.get_world_size())
    dist.all_gather_single(whole, mine)
    return whole


def all_reduce(mine: Tensor) -> Tensor:
    """Everybody gets the sum over all ranks. So data parallel training averages gradients.

    A B         A+C B+D
    C D   ->    A+C B+D
    """
    dist.all_reduce(mine)
    return mine


def reduce_scatter(mine: Tensor) -> Tensor:
    """Each rank gets its chunk of the sum. So gradients are averaged where each rank updates only its own shard.

    A B         A+C
    C D   ->    B+D

    An all-gather of the results makes an all-reduce of it: that is how rings do it.
    """
    chunk = mine.new_empty(len(mine) // dist.get_world_size())
    dist.reduce_scatter_single(chunk, mine)
    return chunk


@dataclass(frozen=True)
class Collective:
    """A collective, what it must give, and how its speed is counted.

    Attributes:
        run: takes what this rank holds, a tensor of one dimension that it may change, and returns what it holds then.
        expected: from what all ranks hold and the number of a rank, what that rank must hold afterwards.
        bus_factor: bytes that cross each link of the busiest rank, divided by the bytes of the message, for a number of
            ranks. The factors are those of nccl-tests (doc/PERFORMANCE.md there).
        takes_chunk: whether a rank starts with a chunk of the message, not with all of it.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    expected: Callable[[Sequence[Tensor], int], Tensor]
    bus_factor: Callable[[int], float]
    takes_chunk: bool = False


def _all_but_own(n: int) -> float:
    return (n - 1) / n


COLLECTIVES = [
    Collective("broadcast", broadcast, lambda held, rank: held[0], lambda n: 1.0),
    Collective("scatter", scatter, lambda held, rank: held[0].chunk(len(held))[rank], _all_but_own),
    Collective(
        "gather", gather, lambda held, rank: torch.cat(list(held)) if rank == 0 else held[0][:0], _all_but_own, True
    ),
    Collective("all-gather", all_gather, lambda held, rank: torch.cat(list(held)), _all_but_own, True),
    Collective("all-reduce", all_reduce, lambda held, rank: sum(held, torch.zeros(())), lambda n: 2 * _all_but_own(n)),
    Collective(
        "reduce-scatter",
        reduce_scatter,
        lambda held, rank: sum(held, torch.zeros(())).chunk(len(held))[rank],
        _all_but_own,
    ),
]


# ------------------------------------------------------------------------------------------------ checking and showing


def collectives(config: CollectivesConfig) -> None:
    """Check, show and measure all collectives; runs in each of at least 2 processes.

    Raises:
        Interrupted: the process was asked to stop.
        TrainyardError: a result is not what it must be.
    """
    postpone_dynamo()
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = launch.run_dir(config.out_dir, PACKAGE, "collectives", None)
    if rank == 0:
        facts = [("processes", f"{world_size} ({dist.get_backend()})"), ("device", str(device.type))]
        preflight(f"{PACKAGE}: collectives", [*facts, ("results", str(folder))])
    for collective in COLLECTIVES:
        rows = check(collective, 1, device)
        check(collective, CHECKED_CHUNK, device)
        if rank == 0:
            say("\n" + picture(collective, rows))
    if rank == 0:
        say("\nEvery rank holds what it must, also for longer messages. Now the bandwidth:\n")
    measured = []
    for size in message_sizes(config):
        row = [measure(collective, size, config.time_per_point_s, device) for collective in COLLECTIVES]
        measured += row
        if rank == 0:
            if len(measured) == len(row):
                say(f"{'GB/s on the bus':>15}" + "".join(f"{point.collective:>16}" for point in row))
            say(f"{bytes_text(size):>15}" + "".join(f"{point.bus_bandwidth / 1e9:>16.3f}" for point in row))
    if rank == 0:
        say(f"\nreport: {report(measured, folder, device)}")
    launch.leave_together()


def held_by(rank: int, collective: Collective, chunk: int, world_size: int) -> Tensor:
    """Return what a rank holds before: 10, 11, ... on rank 0, 20, 21, ... on rank 1: sums of them are exact."""
    count = chunk if collective.takes_chunk else chunk * world_size
    return 10.0 * (rank + 1) + torch.arange(count)


def check(collective: Collective, chunk: int, device: torch.device) -> list[tuple[list[float], list[float]]]:
    """Run a collective and compare what each rank holds afterwards with what it must hold.

    Args:
        collective: which.
        chunk: elements of the chunk of a rank.
        device: where the tensors lie.

    Returns:
        For every rank what it held before and after.

    Raises:
        TrainyardError: a rank holds something else; raised on every rank.
    """
    world_size = dist.get_world_size()
    before = [held_by(rank, collective, chunk, world_size) for rank in range(world_size)]
    mine = before[dist.get_rank()].clone().to(device)  # a copy, since some collectives work in place
    after = collective.run(mine).cpu()
    rows: list[Any] = [None] * world_size
    dist.all_gather_object(rows, after.tolist())
    for rank, found in enumerate(rows):
        wanted = collective.expected(before, rank).tolist()
        if found != wanted:
            raise TrainyardError(
                f"error: {collective.name}: rank {rank} holds {_numbers(found)}, but it must hold {_numbers(wanted)}"
            )
    return [(held.tolist(), found) for held, found in zip(before, rows, strict=True)]


def picture(collective: Collective, rows: Sequence[tuple[list[float], list[float]]]) -> str:
    """Return a small table: what every rank holds before and after."""
    wide = max(len("before"), *(len(_numbers(before)) for before, _ in rows)) + 4
    lines = [f"{collective.name}: {(collective.run.__doc__ or '').splitlines()[0]}", f"  {'':8}{'before':<{wide}}after"]
    for rank, (before, after) in enumerate(rows):
        lines.append(f"  rank {rank:<3}{_numbers(before):<{wide}}{_numbers(after)}")
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values[:8]) + (" ..." if len(values) > 8 else "") if values else "nothing"


# ----------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Point:
    """How fast a collective was for one size of message.

    Attributes:
        message_bytes: of the whole message: what a rank holds at most, before or after.
        time_s: for one call, on the slowest rank.
        algorithm_bandwidth: message_bytes / time_s, in bytes/s: what a user sees.
        bus_bandwidth: algorithm_bandwidth times the bus factor, in bytes/s: comparable between collectives and numbers
            of ranks, and with what the hardware can do.
    """

    collective: str
    message_bytes: int
    repeats: int
    time_s: float
    algorithm_bandwidth: float
    bus_bandwidth: float


def message_sizes(config: CollectivesConfig) -> list[int]:
    """Return the sizes to measure in bytes: from the smallest to the largest, each 4 times the one before."""
    sizes, size = [], config.min_bytes
    while size <= config.max_bytes:
        sizes.append(size)
        size *= 4
    return sizes


def measure(collective: Collective, message_bytes: int, time_s: float, device: torch.device) -> Point:
    """Time a collective for about `time_s` seconds; returns the same on every rank."""
    world_size = dist.get_world_size()
    chunk = max(1, message_bytes // (ELEMENT_BYTES * world_size))
    # Zeros, because an all-reduce in place over and over would let anything else grow beyond all bounds.
    mine = torch.zeros(chunk if collective.takes_chunk else chunk * world_size, device=device)
    collective.run(mine)  # makes connections and buffers
    first_s = _slowest(_seconds(collective, mine, 1))
    repeats = min(max(int(time_s / first_s), 1), MAX_REPEATS)
    each_s = _slowest(_seconds(collective, mine, repeats)) / repeats
    size = chunk * world_size * ELEMENT_BYTES
    bandwidth = size / each_s
    return Point(collective.name, size, repeats, each_s, bandwidth, bandwidth * collective.bus_factor(world_size))


def _seconds(collective: Collective, mine: Tensor, repeats: int) -> float:
    _slowest(0.0)  # start together
    start = time.perf_counter()
    for _ in range(repeats):
        collective.run(mine)
    if mine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _slowest(seconds: float) -> float:
    """Return the longest time of all ranks, so that all take the same number of repeats; stop if one was asked to."""
    values = torch.tensor([seconds, float(launch.stop_request().requested)], device=_device())
    dist.all_reduce(values, dist.ReduceOp.MAX)
    longest, stop = values.tolist()
    if stop:
        raise launch.Interrupted
    return longest


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def report(points: Sequence[Point], folder: Path, device: torch.device) -> Path:
    """Write bandwidth.csv, plots/bandwidth.png and report.html; return the path of the last."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(points[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_atomically(folder / "bandwidth.csv", table.getvalue())

    by_name = {c.name: [point for point in points if point.collective == c.name] for c in COLLECTIVES}
    machine = f"{dist.get_world_size()} processes, {dist.get_backend()}, {device.type.upper()}"
    plotting.bandwidth(
        {name: [(p.message_bytes, p.bus_bandwidth) for p in own] for name, own in by_name.items()},
        folder / "plots" / "bandwidth.png",
        title="Bus bandwidth of the collectives",
        subtitle=machine,
    )
    smallest, largest = bytes_text(points[0].message_bytes), bytes_text(points[-1].message_bytes)
    metrics = {
        f"time for {smallest}": {"unit": "s", "protocol": "one call, on the slowest rank: mostly latency"},
        f"time for {largest}": {"unit": "s", "protocol": "one call, on the slowest rank: mostly bandwidth"},
        "algorithm bandwidth": {"unit": "GB/s", "protocol": f"message of {largest} / time"},
        "bus bandwidth": {
            "unit": "GB/s",
            "protocol": "algorithm bandwidth x bytes that cross the busiest link / bytes of the message, as in "
            "nccl-tests (doc/PERFORMANCE.md)",
        },
    }
    rows = [
        {
            "variant": collective.name,
            "description": (collective.run.__doc__ or "").splitlines()[0],
            "values": dict(
                zip(
                    metrics,
                    [
                        [own[0].time_s],
                        [own[-1].time_s],
                        [own[-1].algorithm_bandwidth / 1e9],
                        [own[-1].bus_bandwidth / 1e9],
                    ],
                    strict=True,
                )
            ),
        }
        for collective in COLLECTIVES
        for own in [by_name[collective.name]]
    ]
    comparison = {"title": "Collectives", "package": PACKAGE, "metrics": metrics, "rows": rows, "protocol": machine}
    facts = provenance(("torch",))
    return write_comparison_report(
        folder, comparison | {"commands": [facts["command"]], "versions": facts["versions"], "notes": []}
    )


if __name__ == "__main__":
    import sys

    from torchdist_cifar import cli

    sys.exit(cli.collectives())
