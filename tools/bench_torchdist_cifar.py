"""How fast `train` of torchdist-cifar is, beside what limits it and beside a plain DataLoader loop; and its start-up.

    uv run --package torchdist-cifar python tools/bench_torchdist_cifar.py [--threads 2] [--rounds 7]

One process, the same network, batch, threads and dtype for all, in turn, several rounds, medians:

    limit       the optimizer step on one batch that lies in memory: nothing to load, nothing to augment
    train       the project's own loop, with loading, augmentation, DistributedDataParallel and logging
    dataloader  a plain loop in the style of most CIFAR-10 scripts: torchvision on PIL images, DataLoader with 2 workers
"""

import argparse
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision.transforms as T
from torch.utils.data import DataLoader, Dataset
from torchdist_cifar import data
from torchdist_cifar.config import TrainConfig
from torchdist_cifar.model import SmallCNN, build_model
from torchdist_cifar.train import Run, build_optimizer
from torchvision.transforms.functional import to_pil_image
from trainyard_shared.config import Parsed
from trainyard_shared.console import TrainingProgress
from trainyard_shared.tensors.images import CIFAR10

STEPS = 10


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 class gives them: PIL, one at a time."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = [to_pil_image(image) for image in images], labels
        mean, std = ([value / 255 for value in values] for values in (CIFAR10.mean, CIFAR10.std))
        self.transform = T.Compose(
            [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def whitened(config: TrainConfig) -> SmallCNN:
    model = build_model(config, 10)
    assert isinstance(model, SmallCNN)
    model.set_whitening(torch.randn(500, 3, 32, 32))
    return model


def limit(config: TrainConfig) -> Callable[[], None]:
    """The step alone."""
    model = whitened(config).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    images = torch.randn(config.micro_batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (config.micro_batch_size,))

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing).backward()
            optimizer.step()

    return steps


def ours(config: TrainConfig, folder: Path) -> Callable[[], None]:
    """The project's loop over an epoch of STEPS batches."""
    run = Run(Parsed(config, "bench", (), resume=folder), data.load(config), torch.device("cpu"))
    progress = TrainingProgress(run.total_images, show=False)

    def steps() -> None:
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0

    return steps


def plain(config: TrainConfig) -> Callable[[], None]:
    """A DataLoader loop; the workers live on between epochs, so that their start is not counted."""
    dataset = data.load(config)
    images = torch.from_numpy(dataset.train_images[: STEPS * config.micro_batch_size])
    pictures = PilImages(images, torch.from_numpy(dataset.train_labels))
    loader = DataLoader(pictures, config.micro_batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    model = whitened(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()

    def steps() -> None:
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(batch), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return steps


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def start_up(threads: int) -> None:
    """Print where the time from the command to the first step goes."""

    def command(*arguments: str) -> float:
        return min(
            seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))
            for _ in range(3)
        )

    python = command("-c", "pass")
    cli = command("-c", "from torchdist_cifar import cli")
    torch_only = command("-c", "import torch")
    everything = command("-c", "import torchdist_cifar.train")
    with_dynamo = command(
        "-c", "import torchdist_cifar.train, torch; torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)"
    )
    print("\nstart-up, one process, best of 3 (s)")
    print(f"  command line read                     {cli:.2f}, of which Python {python:.2f}")
    print(f"  import torch                          {torch_only:.2f}")
    print(f"  import the training module            {everything:.2f}, torch included")
    print(f"  ... and make an optimizer             {with_dynamo:.2f} if torch._dynamo were not postponed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    count = STEPS * arguments.batch
    config = dataclasses.replace(
        TrainConfig(),
        num_sample_images=count,
        num_val=0,
        micro_batch_size=arguments.batch,
        widths=(32, 128, 128),
        epochs=10_000,  # the schedule hardly moves within the benchmark
    )
    with tempfile.TemporaryDirectory() as folder:
        loops = {"limit": limit(config), "train": ours(config, Path(folder)), "dataloader": plain(config)}
        for work in loops.values():
            work()  # not counted: memory is allocated, workers start
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.rounds):
            for name, work in loops.items():
                speeds[name].append(count / seconds(work))
    print(f"images/s over {arguments.rounds} rounds of {STEPS} steps of {arguments.batch}, {arguments.threads} threads")
    for name, values in speeds.items():
        print(f"  {name:<11} median {statistics.median(values):6.0f}   min {min(values):6.0f}   max {max(values):6.0f}")
    for other in ("limit", "dataloader"):
        ratios = [ours / theirs for ours, theirs in zip(speeds["train"], speeds[other], strict=True)]
        middle = statistics.median(ratios)
        print(f"  train / {other:<11} median {middle:.3f}   min {min(ratios):.3f}   max {max(ratios):.3f}")
    start_up(arguments.threads)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # see trainyard_shared.launch.leave_together
