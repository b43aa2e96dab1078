"""The command line: train, evaluate, generate, compare, download. Nothing here imports torch before it is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_shared import launch
from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import parse, preset_folder
from trainyard_shared.datasets.commands import download_one
from trainyard_shared.errors import UsageError
from trainyard_shared.results import newest_run_dir, reserve_run_dir

from fairscale_gpt2_accumulation.config import CompareConfig, EvaluateConfig, GenerateConfig, TrainConfig

PACKAGE = "fairscale-gpt2-accumulation"


@command
def train(argv: Sequence[str]) -> int:
    """Train GPT-2 and test it."""
    parsed = parse(
        TrainConfig,
        argv,
        prog="train",
        description=f"{PACKAGE}: train GPT-2 on WikiText-2 with FairScale, accumulating gradients.",
        presets=preset_folder("fairscale_gpt2_accumulation"),
    )
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("fairscale_gpt2_accumulation.train:train", parsed))
    config = parsed.config
    return launch.launch(
        "fairscale_gpt2_accumulation.train",
        argv,
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=config.max_restarts,
        run_dir=parsed.resume or reserve_run_dir(config.out_dir, PACKAGE, parsed.config_name),
    )


@command
def evaluate(argv: Sequence[str]) -> int:
    """Measure perplexity again, or that of a pretrained model."""
    config = parse(
        EvaluateConfig,
        argv,
        prog="evaluate",
        description=f"{PACKAGE}: measure the perplexity of a model on the whole test text and write a report.",
    ).config
    if config.run is not None and config.model is not None:
        raise UsageError("error: --run and --model exclude each other: one model is evaluated")
    if launch.is_worker():
        return launch.run_worker(lambda: launch.call("fairscale_gpt2_accumulation.evaluate:evaluate", config))
    if config.model is not None:
        run, named = reserve_run_dir(config.out_dir, PACKAGE, "pretrained"), []
    else:
        run = config.run or newest_run_dir(config.out_dir, PACKAGE)
        named = [] if config.run else ["--run", str(run)]
    return launch.launch(
        "fairscale_gpt2_accumulation.evaluate",
        [*argv, *named],
        nproc=config.nproc,
        num_threads=config.num_threads,
        max_restarts=0,
        run_dir=Path(run),
    )


@command
def compare(argv: Sequence[str]) -> int:
    """Compare large batches, accumulation and AdaScale."""
    config = parse(
        CompareConfig,
        argv,
        prog="compare",
        description=f"{PACKAGE}: the same training with large batches, accumulated, with AdaScale, or sharded.",
    ).config
    launch.call("fairscale_gpt2_accumulation.compare:compare", config)
    return 0


@command
def generate(argv: Sequence[str]) -> int:
    """Continue a text at several temperatures."""
    config = parse(
        GenerateConfig,
        argv,
        prog="generate",
        description=f"{PACKAGE}: continue a text at several temperatures side by side.",
    ).config
    for one, other in (("run", "model"), ("prompt", "file")):
        if getattr(config, one) is not None and getattr(config, other) is not None:
            raise UsageError(f"error: --{one} and --{other} exclude each other")
    if config.prompt is not None and not config.prompt.strip():
        raise UsageError("error: --prompt: the text is empty")
    run = None if config.model is not None else config.run or newest_run_dir(config.out_dir, PACKAGE)
    launch.call("fairscale_gpt2_accumulation.generate:generate", run, config)
    return 0


@command
def download(argv: Sequence[str]) -> int:
    """Bring the data into the cache, checked."""
    return download_one("wikitext-2-raw", argv, prog=f"{PACKAGE} download")


@command
def main(argv: Sequence[str]) -> int:
    """Run one of the commands: what is installed as `fairscale-gpt2-accumulation`."""
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "generate": generate, "download": download}
    return dispatch(PACKAGE, "GPT-2 on WikiText-2 with FairScale: gradient accumulation and AdaScale.", commands, argv)


if __name__ == "__main__":
    sys.exit(main())
