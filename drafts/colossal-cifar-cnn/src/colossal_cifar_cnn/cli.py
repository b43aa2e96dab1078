"""The command line: train, evaluate, compare, search, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from colossal_cifar_cnn.config import CompareConfig, EvaluateConfig, SearchConfig, TrainConfig

PACKAGE = "colossal-cifar-cnn"


@command
def train(argv: Sequence[str]) -> int:
    """Train a network and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train a convolutional network on CIFAR-10 with Colossal-AI's Booster.",
        presets=preset_folder("colossal_cifar_cnn"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("colossal_cifar_cnn.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "colossal_cifar_cnn.train",
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
        return launch.run_worker(lambda: launch.call("colossal_cifar_cnn.evaluate:evaluate", run, config))
    return launch.launch(
        "colossal_cifar_cnn.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare plugins, optimizers or numbers of processes."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training by each plugin, with each optimizer at several learning rates, "
        "or with 1 process and with N.",
    ).config
    launch.call("colossal_cifar_cnn.compare:compare", config)
    return 0


@command
def search(argv: Sequence[str]) -> int:
    """Search hyperparameters."""
    parsed = parse(
        SearchConfig,
        argv,
        prog="search",
        description=f"{PACKAGE}: search hyperparameters with Optuna; --resume goes on with a search.",
    )
    launch.call("colossal_cifar_cnn.search:search", parsed)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring CIFAR-10 into the cache."""
    return download_one("cifar10", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `colossal-cifar-cnn`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "search": search, "download": download}
    return dispatch(PACKAGE, "Convolutional networks on CIFAR-10 with Colossal-AI's Booster.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
