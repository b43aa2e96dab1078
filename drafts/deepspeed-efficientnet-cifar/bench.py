"""What DeepSpeed costs beside plain PyTorch: ZeRO-0 to 3 against DistributedDataParallel on the same work, in turn.

    uv run --package deepspeed-efficientnet-cifar torchrun --nproc-per-node 2 \\
        tools/bench_deepspeed_efficientnet.py [--model tf_efficientnet_lite0] [--image-size 64] [--rounds 5]

All have the same network, batch in memory, threads, dtype, AdamW and clipping; nothing is loaded or augmented. Printed
are medians over the rounds with the smallest and the largest, and the bytes that a process holds beside the formula.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed_efficientnet_cifar import model
from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.train import deepspeed_settings, sizes, start
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared import launch
from trainyard_shared.tensors import zero

CPU = torch.device("cpu")
Step = Callable[[], None]


def ddp(config: TrainConfig, images: Tensor, labels: Tensor) -> Step:
    """A step of plain PyTorch."""
    torch.manual_seed(0)
    network = model.make(config, 10)
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameter_groups(network, config.weight_decay), lr=config.learning_rate)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            logits = parallel(images)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def deepspeed_step(
    config: TrainConfig, images: Tensor, labels: Tensor, held: dict[str, dict[str, int]]
) -> tuple[Step, dict[str, int]]:
    """A step of DeepSpeed, and what its process should hold; what it does hold is put into `held`."""
    import deepspeed

    torch.manual_seed(0)
    network = model.make(config, 10)
    settings: dict[str, Any] = deepspeed_settings(config, dist.get_world_size(), CPU)
    stated, chosen = settings["zero_optimization"], sizes(max(p.numel() for p in network.parameters()), True)
    settings["zero_optimization"] = {name: chosen.get(name, value) for name, value in stated.items()}
    groups = model.parameter_groups(network, config.weight_decay)
    engine, *_ = deepspeed.initialize(model=network, model_parameters=groups, config=settings)
    num_parameters = sum(p.numel() for p in model.make(config, 10).parameters())
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        engine.backward(F.cross_entropy(engine(images).float(), labels))
        if num_steps == 1:
            held[config.deepspeed] = zero.held_bytes(engine)
        engine.step()
        num_steps += 1

    return step, zero.predicted_bytes(num_parameters, stated["stage"], dist.get_world_size(), "fp32")


def main() -> None:
    """Measure all in turn; rank 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    start(CPU, 120.0)
    config = TrainConfig(
        model=flags.model, image_size=flags.image_size, micro_batch_size=flags.batch, precision=flags.precision
    )
    images = torch.randn(flags.batch, 3, flags.image_size, flags.image_size).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(0, 10, (flags.batch,))
    steps, predicted, held = {"DDP": ddp(config, images, labels)}, {}, dict[str, dict[str, int]]()
    for name in ("zero0", "zero1", "zero2", "zero3"):
        own = dataclasses.replace(config, deepspeed=name)
        steps[name], predicted[name] = deepspeed_step(own, images, labels, held)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(flags.rounds + 1):
        for name, step in steps.items():
            dist.barrier()
            before = time.perf_counter()
            for _ in range(flags.steps):
                step()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - before) / flags.steps)
    if dist.get_rank() == 0:
        base = statistics.median(seconds["DDP"])
        for name, times in seconds.items():
            middle = statistics.median(times)
            line = f"{name:6} {middle * 1e3:7.0f} ms a step ({min(times) * 1e3:.0f} to {max(times) * 1e3:.0f})"
            line += f", {flags.batch * dist.get_world_size() / middle:6.1f} images/s, {base / middle:.2f} x DDP"
            if name in held:
                found, expected = sum(held[name].values()), sum(predicted[name].values())
                line += f"; {found / 2**20:.1f} MiB held, {found / expected - 1:+.2%} from the formula"
            print(line)
    launch.leave_together()


if __name__ == "__main__":
    launch.run_worker(main)
