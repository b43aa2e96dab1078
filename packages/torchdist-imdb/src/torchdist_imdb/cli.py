"""The command line: train, evaluate, compare, search, predict, download. torch is imported where it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.errors import UsageError
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from torchdist_imdb.config import CompareConfig, EvaluateConfig, PredictConfig, SearchConfig, TrainConfig

PACKAGE = "torchdist-imdb"


@command
def train(argv: Sequence[str]) -> int:
    """Fine-tune a transformer and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: fine-tune a transformer on the sentiment of film reviews with torch.distributed.",
        presets=preset_folder("torchdist_imdb"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("torchdist_imdb.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "torchdist_imdb.train",
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
        return launch.run_worker(lambda: launch.call("torchdist_imdb.evaluate:evaluate", run, config))
    return launch.launch(
        "torchdist_imdb.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare pretrained models, or 1 process with N."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training of several pretrained models, or with 1 process and with N.",
    ).config
    launch.call("torchdist_imdb.compare:compare", config)
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
    launch.call("torchdist_imdb.search:search", parsed)
    return 0


@command
def predict(argv: Sequence[str]) -> int:
    """Say whether reviews are positive or negative."""
    config = parse(
        PredictConfig,
        argv,
        prog="predict",
        description=f"{PACKAGE}: say of a text, or of each review in a file, whether it is positive or negative.",
    ).config
    if (config.text is None) == (config.file is None):
        raise UsageError("error: predict needs --text or --file, and not both")
    if config.out is not None and config.file is None:
        raise UsageError("error: --out goes with --file")
    if config.text is not None and not config.text.strip():
        raise UsageError("error: --text: the text is empty")
    launch.call("torchdist_imdb.predict:predict", config.run or newest_run_dir(config.out_dir, PACKAGE), config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring the reviews of IMDb into the cache."""
    return download_one("imdb", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `torchdist-imdb`."""
    commands = {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "search": search,
        "predict": predict,
        "download": download,
    }
    return dispatch(PACKAGE, "Sentiment of film reviews with a transformer and torch.distributed.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
