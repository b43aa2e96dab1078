"""The command line: train, evaluate, compare, generate, rate, export, download. Nothing imports torch too early."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.errors import UsageError
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from deepspeed_gpt2_pile.config import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    RateConfig,
    TrainConfig,
)

PACKAGE = "deepspeed-gpt2-pile"


@command
def train(argv: Sequence[str]) -> int:
    """Train GPT-2 and test it."""
    argv = _without_local_rank(argv)
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train GPT-2 on The Pile with DeepSpeed.",
        presets=preset_folder("deepspeed_gpt2_pile"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_gpt2_pile.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "deepspeed_gpt2_pile.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Measure the model of a run on the test set again."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: perplexity and bits per byte of a run's model on the test set, by component.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("deepspeed_gpt2_pile.evaluate:evaluate", run, config))
    return launch.launch(
        "deepspeed_gpt2_pile.evaluate",
        [*argv, *([] if config.run else ["--run", str(run)])],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare DeepSpeed with plain PyTorch, or ways to fine-tune."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training with DeepSpeed and plain, or full, partial and low-rank.",
    ).config
    if config.what == "tuning" and config.model is None:
        raise UsageError("error: --what tuning needs a pretrained --model, such as the folder `model` of a run")
    launch.call("deepspeed_gpt2_pile.compare:compare", config)
    return 0


@command
def generate(argv: Sequence[str]) -> int:
    """Let models go on from prompts."""
    config = parse(
        GenerateConfig,
        argv,
        prog="generate",
        description=f"{PACKAGE}: go on from several prompts, with one or several models side by side.",
    ).config
    runs = config.run or (newest_run_dir(config.out_dir, PACKAGE),)
    launch.call("deepspeed_gpt2_pile.generate:generate", runs, config)
    return 0


@command
def rate(argv: Sequence[str]) -> int:
    """Let people rate texts blindly, and put the ratings together."""
    config = parse(
        RateConfig,
        argv,
        prog="rate",
        description=f"{PACKAGE}: a blinded sheet of texts to rate; --collect puts filled-in sheets together.",
    ).config
    if bool(config.run) == bool(config.collect):
        raise UsageError(
            "error: rate needs --run RUN ... to make a sheet, or --collect SHEET ... to read filled-in ones"
        )
    verb = "collect" if config.collect else "make_sheet"
    launch.call(f"deepspeed_gpt2_pile.rate:{verb}", config)
    return 0


@command
def export(argv: Sequence[str]) -> int:
    """Write a checkpoint as a plain Hugging Face folder."""
    config = parse(
        ExportConfig,
        argv,
        prog="export",
        description=f"{PACKAGE}: write a checkpoint of a run, also of an unfinished one, as a Hugging Face folder.",
    ).config
    run = config.run or newest_run_dir(config.out_dir, PACKAGE)
    launch.call("deepspeed_gpt2_pile.export:export", Path(run), config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring The Pile into the cache."""
    return download_one("pile", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `deepspeed-gpt2-pile`."""
    commands = {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "generate": generate,
        "rate": rate,
        "export": export,
        "download": download,
    }
    return dispatch(PACKAGE, "GPT-2 on The Pile with DeepSpeed.", commands, argv)


def _without_local_rank(argv: Sequence[str]) -> list[str]:
    """Drop `--local_rank=N`, which the deepspeed launcher adds; LOCAL_RANK in the environment says the same."""
    return [word for word in argv if not word.startswith("--local_rank=")]


if __name__ == "__main__":
    sys.exit(main())
