"""What checkpointing costs and saves in fairscale-turbofan-anomaly, and what FairScale costs beside plain DDP.

    uv run --package fairscale-turbofan-anomaly python tools/bench_fairscale_turbofan.py
    ... --networks gru --lengths 256 --no-sharding      a part of it

Two parts, in one run:

    checkpointing   one process: most bytes in use at a time and CPU time of a step, without checkpointing, FairScale's
                    and with PyTorch's; the ways take turns, medians. Wanted: at most 25 % of the activations for 256
                    cycles in a window, 10 % for 1024, at most 1.4 times the time
    sharding        two Gloo processes on the same work: a step of OSS + ShardedDataParallel, DistributedDataParallel,
                    and ZeroRedundancyOptimizer + DistributedDataParallel, with and without FairScale's checkpointing
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch.utils.checkpoint
from fairscale_turbofan_anomaly import checkpointing, sharding
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.model import build_model

NUM_SENSORS = 15
BOUNDS = {256: 0.25, 1024: 0.10}
LONGEST = 1.4
# A transformer keeps the input of every layer: the deeper it is, the smaller is what computing one of them again adds.
NETWORKS = {"lstm": 2, "gru": 2, "transformer": 12}
# A transformer needs the most for attention, which knows no chunks: smaller ones would cost time and save nothing.
CHUNKS = {"lstm": 32, "gru": 32, "transformer": 128}
WAYS = ("none", "fairscale", "torch")


def loss(output: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Of the supervised detector, were all windows positive."""
    return F.binary_cross_entropy_with_logits(output, torch.ones_like(output))


def bench_checkpointing(networks: list[str], lengths: list[int], rounds: int) -> None:
    """Print a line for each network, length and way."""
    print(f"{'network':<12}{'cycles':>7} {'way':<10}{'MiB':>8}{'share':>8}{'CPU s':>10}{'times':>7}  bounds")
    for network in networks:
        for length in lengths:
            windows = torch.randn(8, length, NUM_SENSORS)
            models, held = {}, {}
            for way in WAYS:
                settings: dict[str, Any] = {"model": network, "num_layers": NETWORKS[network], "chunk": CHUNKS[network]}
                config = TrainConfig(**settings, checkpointing=way)  # type: ignore[arg-type]
                torch.manual_seed(0)
                models[way] = checkpointing.apply(build_model(config, NUM_SENSORS), way).train()
                held[way] = checkpointing.activation_bytes(models[way], windows, loss)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    models[way].zero_grad()
                    start = time.process_time()  # of the one thread: other work on the machine does not count
                    loss(models[way](windows), windows).backward()
                    seconds[way].append(time.process_time() - start)
            plain = statistics.median(seconds["none"])
            for way in WAYS:
                share, times = held[way] / held["none"], statistics.median(seconds[way]) / plain
                # Of neighbouring steps, so that a machine that slows down does so for both.
                paired = statistics.median(a / b for a, b in zip(seconds[way], seconds["none"], strict=True))
                kept = way == "none" or (share <= BOUNDS.get(length, 1) and paired <= LONGEST)
                print(
                    f"{network:<12}{length:>7} {way:<10}{held[way] / 2**20:>8.2f}{share:>8.1%}{times * plain:>10.3f}"
                    f"{paired:>7.2f}  {'kept' if kept else 'NOT KEPT'}",
                    flush=True,
                )


def bench_sharding(rounds: int, steps: int) -> None:
    """Time the ways of sharding in this process, one of a group; rank 0 prints a line for each."""
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    windows, labels = torch.randn(64, 50, NUM_SENSORS), torch.randint(2, (64,)).float()
    cases: dict[str, Any] = {}
    for name in ("ddp", "oss", "zero_redundancy"):
        for way in ("none", "fairscale"):
            config = TrainConfig(sharding=name, checkpointing=way)
            torch.manual_seed(0)
            model = checkpointing.apply(build_model(config, NUM_SENSORS), way).train()
            cases[f"{name}, checkpointing {way}"] = sharding.WAYS[name](model, config, torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, sharded in cases.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                sharded.optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(sharded.parallel(windows), labels).backward()
                sharded.optimizer.step()
            seconds[name].append((time.perf_counter() - start) / steps)
    if dist.get_rank() == 0:
        print(f"{'sharding, 2 processes':<38}{'ms a step':>10}{'times ddp':>11}{'bytes held':>12}")
        for name, sharded in cases.items():
            plain = seconds["ddp, checkpointing none"][1:]  # the first round warms up
            paired = statistics.median(a / b for a, b in zip(seconds[name][1:], plain, strict=True))
            median, held = statistics.median(seconds[name][1:]), sum(sharded.held_bytes().values())
            print(f"{name:<38}{1000 * median:>10.1f}{paired:>11.2f}{held:>12,}")
    dist.barrier()
    dist.destroy_process_group()


def start_group(arguments: list[str], count: int) -> None:
    """Run this file in a group of processes and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--sharding", *arguments]
    processes = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(count)]
    try:
        if any(process.wait(timeout=600) for process in processes):
            sys.exit("a process of the group failed")
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    """Parse the command line and run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024], help="cycles in a window")
    parser.add_argument("--rounds", type=int, default=5, help="how often the variants take turns")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--no-sharding", action="store_true", help="leave out the second part")
    parser.add_argument("--sharding", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.sharding:
        bench_sharding(arguments.rounds, steps=5)
        return
    bench_checkpointing(arguments.networks, arguments.lengths, arguments.rounds)
    if not arguments.no_sharding:
        start_group(["--rounds", str(arguments.rounds)], count=2)


if __name__ == "__main__":
    main()
