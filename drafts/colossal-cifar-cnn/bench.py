"""What Colossal-AI's Booster costs: a step by each plugin beside the same step in plain PyTorch, in turn, in one run.

    uv run --package colossal-cifar-cnn python tools/bench_colossal_cifar.py [--processes 2] [--rounds 9]

The same network, AdamW, batch, threads and dtype for all, on batches that lie in memory. Two groups, each against its
own reference, since Gemini computes in 16 bits only:

    fp32    plain DistributedDataParallel, and TorchDDP, ZeRO-1, ZeRO-2
    bf16    the network in bf16, its gradients averaged by DistributedDataParallel, with fp32 masters and AdamW by hand,
            and ZeRO-1, ZeRO-2, Gemini
"""

import argparse
import copy
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossal_cifar_cnn import plugins
from colossal_cifar_cnn.config import Precision, TrainConfig
from colossal_cifar_cnn.model import build_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 5


def plain(model: nn.Module, config: TrainConfig, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The step without Colossal-AI."""
    dtype = plugins.DTYPES[config.precision]
    model = model.to(dtype)
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    masters = [p if dtype is torch.float32 else nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=config.peak_learning_rate, weight_decay=config.decay)

    def steps() -> None:
        for _ in range(STEPS):
            model.zero_grad(set_to_none=False)
            F.cross_entropy(ddp(images.to(dtype)).float(), labels).backward()
            if dtype is torch.float32:
                optimizer.step()
                continue
            for master, working in zip(masters, model.parameters(), strict=True):
                master.grad = working.grad.float()
            optimizer.step()
            with torch.no_grad():
                for master, working in zip(masters, model.parameters(), strict=True):
                    working.copy_(master)

    return steps


def boosted(model: nn.Module, config: TrainConfig, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The step as `train` makes it."""
    run = plugins.PLUGINS[config.plugin](model, config, torch.device("cpu"))

    def steps() -> None:
        for _ in range(STEPS):
            run.optimizer.zero_grad()
            loss = F.cross_entropy(run.model(images).float(), labels)
            run.booster.backward(loss, run.optimizer)
            run.optimizer.step()

    return steps


def worker(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    plugins.launch(torch.device("cpu"), 0)
    base = dataclasses.replace(TrainConfig(), widths=(32, 128, 128), micro_batch_size=arguments.batch)
    torch.manual_seed(dist.get_rank())
    images = torch.randn(arguments.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (arguments.batch,))
    fast = images.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    network = build_model(base, 10)
    fp32: dict[str, Any] = {name: {"plugin": name} for name in ("ddp", "zero1", "zero2")}
    narrow = {"precision": "bf16", "optimizer": "hybrid_adam"}
    bf16: dict[str, Any] = {name: {"plugin": name, **narrow} for name in ("zero1", "zero2", "gemini")}
    groups: tuple[tuple[Precision, dict[str, Any]], ...] = (("fp32", fp32), ("bf16", bf16))
    for group, variants in groups:
        # Gemini takes images as they are by default, so in its group all do: see `data.py`.
        pictures = fast if group == "fp32" else images
        config = dataclasses.replace(base, precision=group)
        loops = {"plain PyTorch": plain(copy.deepcopy(network), config, pictures, labels)}
        for name, changes in variants.items():
            config = dataclasses.replace(base, **changes)
            loops[name] = boosted(copy.deepcopy(network), config, pictures, labels)
        for steps in loops.values():
            steps()  # not counted
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.rounds):
            for name, steps in loops.items():
                dist.barrier()
                start = time.perf_counter()
                steps()
                seconds[name].append((time.perf_counter() - start) / STEPS)
        if dist.get_rank() == 0:
            tell(group, seconds, arguments)
    dist.barrier()


def tell(group: str, seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print medians, and the overhead of each plugin, round by round."""
    images = arguments.batch * dist.get_world_size()
    print(
        f"{group}: {dist.get_world_size()} processes x {arguments.threads} thread(s), {arguments.batch} images each, "
        f"{arguments.rounds} rounds of {STEPS} steps"
    )
    reference = seconds["plain PyTorch"]
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(own / other for own, other in zip(values, reference, strict=True))
        print(
            f"  {name:<14} {median * 1000:7.1f} ms a step ({min(values) * 1000:.1f} to {max(values) * 1000:.1f})  "
            f"{images / median:6.0f} images/s  {ratio - 1:+7.1%} against plain PyTorch"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        worker(arguments)
        os._exit(0)  # see trainyard_shared.launch.leave_together
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(arguments.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(arguments.threads),
    }
    group = [
        subprocess.Popen([sys.executable, *sys.argv], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(arguments.processes)
    ]
    sys.exit(max(process.wait() for process in group))


if __name__ == "__main__":
    main()
