"""The command line: train, evaluate, compare, forecast, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import load_preset, parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from torchdist_stocks.config import CompareConfig, EvaluateConfig, ForecastConfig, TrainConfig

PACKAGE = "torchdist-stocks"


@command
def train(argv: Sequence[str]) -> int:
    """Train networks through time and test them."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: forecast stock prices with a recurrent network and torch.distributed.",
        presets=preset_folder("torchdist_stocks"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("torchdist_stocks.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "torchdist_stocks.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Test the networks of a run again."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: test the networks of a run on all test days again and write its report again.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("torchdist_stocks.evaluate:evaluate", run, config))
    return launch.launch(
        "torchdist_stocks.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare LSTM with GRU, targets, and 1 process with N."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: LSTM or GRU, returns or log prices, 1 process or N: errors and speed, with spread.",
    ).config
    launch.call("torchdist_stocks.compare:compare", config)
    return 0


@command
def forecast(argv: Sequence[str]) -> int:
    """Forecast the days to come."""
    config = parse(
        ForecastConfig,
        argv,
        prog="forecast",
        description=f"{PACKAGE}: forecast the days after the last known ones with the network of a run.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    launch.call("torchdist_stocks.forecast:forecast", run, config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring prices from Yahoo Finance into the cache; by default those of the preset full."""
    full = load_preset(TrainConfig, preset_folder("torchdist_stocks") / "full.yaml")
    return download_one("stocks", argv, prog=f"{PACKAGE} download", tickers=full.tickers, start=full.start)


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `torchdist-stocks`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "forecast": forecast, "download": download}
    return dispatch(PACKAGE, "Forecasts of stock prices with torch.distributed.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
