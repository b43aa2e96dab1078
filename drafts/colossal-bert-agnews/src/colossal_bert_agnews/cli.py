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

from colossal_bert_agnews import layout
from colossal_bert_agnews.config import CompareConfig, EvaluateConfig, PredictConfig, TrainConfig

PACKAGE = "colossal-bert-agnews"


@command
def train(argv: Sequence[str]) -> int:
    """Fine-tune BERT and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: fine-tune BERT on the topics of news with Colossal-AI.",
        presets=preset_folder("colossal_bert_agnews"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("colossal_bert_agnews.train:train", parsed))
    config = parsed.config
    if config.nproc != "auto":
        layout.check(config, config.nproc)  # before any process is started; each of them looks again
    return launch.launch(
        "colossal_bert_agnews.train",
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
        return launch.run_worker(lambda: launch.call("colossal_bert_agnews.evaluate:evaluate", run, config))
    return launch.launch(
        "colossal_bert_agnews.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare parallel layouts, models, cleaning or augmentation."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: one training with each parallel layout, model, way of cleaning or of augmentation.",
    ).config
    launch.call("colossal_bert_agnews.compare:compare", config)
    return 0


@command
def predict(argv: Sequence[str]) -> int:
    """Say which topic articles are about."""
    config = parse(
        PredictConfig,
        argv,
        prog="predict",
        description=f"{PACKAGE}: say of a text, or of each article in a file, which topic it is about.",
    ).config
    if (config.text is None) == (config.file is None):
        raise UsageError("error: predict needs --text or --file, and not both")
    if config.out is not None and config.file is None:
        raise UsageError("error: --out goes with --file")
    if config.text is not None and not config.text.strip():
        raise UsageError("error: --text: the text is empty")
    launch.call("colossal_bert_agnews.predict:predict", config.run or newest_run_dir(config.out_dir, PACKAGE), config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring AG News into the cache."""
    return download_one("ag_news", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `colossal-bert-agnews`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "predict": predict, "download": download}
    return dispatch(PACKAGE, "Topics of news with BERT and Colossal-AI.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
