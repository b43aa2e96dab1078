"""The command line: train, evaluate, compare, search, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from deepspeed_efficientnet_cifar.config import CompareConfig, EvaluateConfig, SearchConfig, TrainConfig

PACKAGE = "deepspeed-efficientnet-cifar"


@command
def train(argv: Sequence[str]) -> int:
    """Train an EfficientNet and test it."""
    argv = launch_arguments(argv)
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train an EfficientNet on CIFAR-10 with DeepSpeed.",
        presets=preset_folder("deepspeed_efficientnet_cifar"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_efficientnet_cifar.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "deepspeed_efficientnet_cifar.train",
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
        return launch.run_worker(lambda: launch.call("deepspeed_efficientnet_cifar.evaluate:evaluate", run, config))
    return launch.launch(
        "deepspeed_efficientnet_cifar.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare architectures, or the stages of ZeRO."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training of several architectures, or with each stage of ZeRO.",
    ).config
    launch.call("deepspeed_efficientnet_cifar.compare:compare", config)
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
    launch.call("deepspeed_efficientnet_cifar.search:search", parsed)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring the data into the cache, checked."""
    return download_one("cifar10", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `deepspeed-efficientnet-cifar`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "search": search, "download": download}
    return dispatch(PACKAGE, "EfficientNets on CIFAR-10 with DeepSpeed.", commands, argv)


def launch_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments without `--local_rank=N`, which the deepspeed launcher puts before those of the user."""
    return [argument for argument in argv if not argument.startswith("--local_rank=")]


if __name__ == "__main__":
    sys.exit(main())
