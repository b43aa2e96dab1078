"""The command line: train, evaluate, compare, predict, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.errors import UsageError
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from deepspeed_bert_sentiment140.config import CompareConfig, EvaluateConfig, PredictConfig, TrainConfig

PACKAGE = "deepspeed-bert-sentiment140"


@command
def train(argv: Sequence[str]) -> int:
    """Fine-tune BERT and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: fine-tune BERT on the sentiment of tweets with DeepSpeed.",
        presets=preset_folder("deepspeed_bert_sentiment140"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_bert_sentiment140.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "deepspeed_bert_sentiment140.train",
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
        return launch.run_worker(lambda: launch.call("deepspeed_bert_sentiment140.evaluate:evaluate", run, config))
    return launch.launch(
        "deepspeed_bert_sentiment140.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare stages of ZeRO, ways of parallelism, or models."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: one training with each stage of ZeRO, each way of parallelism, or several models.",
    ).config
    launch.call("deepspeed_bert_sentiment140.compare:compare", config)
    return 0


@command
def predict(argv: Sequence[str]) -> int:
    """Say whether tweets are positive or negative."""
    config = parse(
        PredictConfig,
        argv,
        prog="predict",
        description=f"{PACKAGE}: say of a text, or of each tweet in a file, whether it is positive or negative.",
    ).config
    if (config.text is None) == (config.file is None):
        raise UsageError("error: predict needs --text or --file, and not both")
    if config.out is not None and config.file is None:
        raise UsageError("error: --out goes with --file")
    if config.text is not None and not config.text.strip():
        raise UsageError("error: --text: the text is empty")
    launch.call(
        "deepspeed_bert_sentiment140.predict:predict", config.run or newest_run_dir(config.out_dir, PACKAGE), config
    )
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring the data into the cache, checked."""
    return download_one("sentiment140", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `deepspeed-bert-sentiment140`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "predict": predict, "download": download}
    return dispatch(PACKAGE, "Sentiment of tweets with BERT and DeepSpeed.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
