"""The command line: train, evaluate, compare, plan, export, download. torch is imported where it is needed only."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from deepspeed_vit_fsdp.config import CompareConfig, EvaluateConfig, ExportConfig, PlanConfig, TrainConfig

PACKAGE = "deepspeed-vit-fsdp"


@command
def train(argv: Sequence[str]) -> int:
    """Train a model and test it."""
    argv = _without_local_rank(argv)
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train a vision transformer on CIFAR-100 with DeepSpeed.",
        presets=preset_folder("deepspeed_vit_fsdp"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_vit_fsdp.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "deepspeed_vit_fsdp.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Test the model of a run again."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: test the model of a run on the whole test set and write its report again.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_vit_fsdp.evaluate:evaluate", run, config))
    return launch.launch(
        "deepspeed_vit_fsdp.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare ways of sharing out a step, or numbers of processes."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training shared out in nine ways, or on more and more processes.",
    ).config
    launch.call("deepspeed_vit_fsdp.compare:compare", config)
    return 0


@command
def plan(argv: Sequence[str]) -> int:
    """Predict the memory that a model needs on each GPU."""
    config = parse(
        PlanConfig,
        argv,
        prog="plan",
        description=f"{PACKAGE}: predict the memory per GPU for every way of sharing out a model; nothing is trained.",
    ).config
    launch.call("deepspeed_vit_fsdp.plan:plan", config)
    return 0


@command
def export(argv: Sequence[str]) -> int:
    """Write a run's model as a plain Hugging Face folder."""
    config = parse(
        ExportConfig,
        argv,
        prog="export",
        description=f"{PACKAGE}: write the model of a run, also of an unfinished one, as a Hugging Face folder.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    launch.call("deepspeed_vit_fsdp.export:export", Path(run), config.to)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring CIFAR-100 into the cache."""
    return download_one("cifar100", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `deepspeed-vit-fsdp`."""
    commands = {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "plan": plan,
        "export": export,
        "download": download,
    }
    return dispatch(PACKAGE, "A vision transformer on CIFAR-100 with DeepSpeed and full sharding.", commands, argv)


def _without_local_rank(argv: Sequence[str]) -> list[str]:
    """Drop `--local_rank=N`, which the deepspeed launcher adds; LOCAL_RANK in the environment says the same."""
    return [word for word in argv if not word.startswith("--local_rank=")]


if __name__ == "__main__":
    sys.exit(main())
