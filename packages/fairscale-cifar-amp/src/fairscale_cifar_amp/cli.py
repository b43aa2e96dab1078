"""The command line: train, evaluate, compare, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from fairscale_cifar_amp.config import CompareConfig, EvaluateConfig, TrainConfig

PACKAGE = "fairscale-cifar-amp"


@command
def train(argv: Sequence[str]) -> int:
    """Train a network and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train a convolutional network on CIFAR-10 with FairScale in mixed precision.",
        presets=preset_folder("fairscale_cifar_amp"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("fairscale_cifar_amp.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "fairscale_cifar_amp.train",
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
        return launch.run_worker(lambda: launch.call("fairscale_cifar_amp.evaluate:evaluate", run, config))
    return launch.launch(
        "fairscale_cifar_amp.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare precisions and ways of sharding."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training in 32 and 16 bits, and sharded in five ways.",
    ).config
    launch.call("fairscale_cifar_amp.compare:compare", config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring CIFAR-10 into the cache."""
    return download_one("cifar10", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `fairscale-cifar-amp`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "download": download}
    return dispatch(PACKAGE, "A convolutional network on CIFAR-10 with FairScale in mixed precision.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
