"""The command line: train, evaluate, compare, detect, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from fairscale_turbofan_anomaly.config import CompareConfig, DetectConfig, EvaluateConfig, TrainConfig

PACKAGE = "fairscale-turbofan-anomaly"


@command
def train(argv: Sequence[str]) -> int:
    """Train a detector and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train a detector of failing turbofan engines with FairScale's checkpointing.",
        presets=preset_folder("fairscale_turbofan_anomaly"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("fairscale_turbofan_anomaly.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "fairscale_turbofan_anomaly.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Test the detector of a run again."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: test the detector of a run on all unseen engines and write its report again.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("fairscale_turbofan_anomaly.evaluate:evaluate", run, config))
    return launch.launch(
        "fairscale_turbofan_anomaly.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare with and without checkpointing, ways of sharding, and networks."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: with and without checkpointing, ways of sharding, networks, detectors.",
    ).config
    launch.call("fairscale_turbofan_anomaly.compare:compare", config)
    return 0


@command
def detect(argv: Sequence[str]) -> int:
    """Score the engines of a file."""
    config = parse(
        DetectConfig,
        argv,
        prog="detect",
        description=f"{PACKAGE}: score the engines of a file, cycle by cycle, with the detector of a run.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    launch.call("fairscale_turbofan_anomaly.detect:detect", run, config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring the data into the cache, checked."""
    return download_one("cmapss", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `fairscale-turbofan-anomaly`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "detect": detect, "download": download}
    return dispatch(PACKAGE, "Failing turbofan engines, found with FairScale's checkpointing.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
