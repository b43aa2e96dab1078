"""The command line: train, evaluate, compare, collectives, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.errors import UsageError
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from torchdist_cifar.config import CollectivesConfig, CompareConfig, EvaluateConfig, TrainConfig

PACKAGE = "torchdist-cifar"


@command
def train(argv: Sequence[str]) -> int:
    """Train a network and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train a convolutional network on CIFAR-10 with torch.distributed.",
        presets=preset_folder("torchdist_cifar"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("torchdist_cifar.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "torchdist_cifar.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Test the network of a run again."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: test the network of a run on the whole test set and write its report again.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("torchdist_cifar.evaluate:evaluate", run, config))
    return launch.launch(
        "torchdist_cifar.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare 1 process with N."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training with 1 process and with N: speed-up, efficiency, equal accuracy.",
    ).config
    launch.call("torchdist_cifar.compare:compare", config)
    return 0


@command
def collectives(argv: Sequence[str]) -> int:
    """Show and measure the collectives."""
    config = parse(
        CollectivesConfig,
        argv,
        prog="collectives",
        description=f"{PACKAGE}: what broadcast, scatter, gather, all-gather, all-reduce and reduce-scatter do, "
        "and how fast they are here.",
    ).config
    if launch.is_worker():
        if launch.world_size() < 2:
            raise UsageError("error: one process has nobody to talk to; use --nproc 2")
        return launch.run_worker(lambda: launch.call("torchdist_cifar.collectives:collectives", config))
    return launch.launch(
        "torchdist_cifar.collectives",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=reserve_run_dir(config.out_dir, PACKAGE, "collectives"),
    )


@command
def download(argv: Sequence[str]) -> int:
    """Bring CIFAR-10 into the cache."""
    return download_one("cifar10", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `torchdist-cifar`."""
    commands = {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "collectives": collectives,
        "download": download,
    }
    return dispatch(PACKAGE, "A convolutional network on CIFAR-10 with torch.distributed.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
