"""One training with each stage of ZeRO, each way of parallelism, each treatment of unequal classes, or several models.

All variants share the global batch, and so the steps. What they should share as well, the accuracy, is in the table;
what they should not, the bytes that a process holds, is beside it, predicted and measured.
"""

from pathlib import Path
from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from deepspeed_bert_sentiment140.config import CompareConfig, TrainConfig

PACKAGE = "deepspeed-bert-sentiment140"
METRICS: dict[str, dict[str, Any]] = {
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "all test tweets, each once"},
    "test_f1": {"unit": "fraction", "higher_is_better": True, "protocol": "mean of the F1 of all classes"},
    "tokens_per_second": {
        "unit": "tokens/s",
        "higher_is_better": True,
        "protocol": "without padding; training steps only, all processes together",
    },
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, gradients and optimizer state of rank 0, measured within a step",
    },
    "predicted_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "the same, by the formulas of ZeRO"},
}
STATE = ("parameters", "gradients", "optimizer")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: two models have the same name, or the processes are too few.
        TrainyardError: a run failed.
    """
    file, name = find_config(config.config, preset_folder("deepspeed_bert_sentiment140"))
    variants = variants_of(config, load_preset(TrainConfig, file))
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc, "baseline": False}
    for field in ("data_dir", "epochs", "model"):
        if getattr(config, field) is not None:
            shared[field] = getattr(config, field)
    outcomes = comparing.run_variants(
        "deepspeed_bert_sentiment140.train", config.config, shared, variants, config.seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "test_f1": lambda s: s["metrics"]["test_f1"]["value"],
            "tokens_per_second": lambda s: s["throughput"]["tokens_per_second"],
            "held_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in STATE),
            "predicted_bytes": lambda s: sum(s["memory"]["predicted_bytes"][part] for part in STATE),
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    for metric, title in (
        ("test_accuracy", "Test accuracy"),
        ("tokens_per_second", "Throughput"),
        ("held_bytes", "Held by rank 0"),
    ):
        path = folder / "plots" / f"{metric}.png"
        plotting.comparison_bars(rows, metric, path, unit=METRICS[metric]["unit"], title=title, note=note)
    titles = {"zero": "Stages of ZeRO", "parallel": "Ways of parallelism", "imbalance": "Classes of different sizes"}
    comparison = {
        "title": "Models" if config.models else titles[config.what],
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} tweets, {config.nproc} process(es), "
        f"{config.num_threads} thread(s) each, config '{config.config}', seeds 0 to {config.seeds - 1}, variants in "
        f"turn, each run in fresh processes on {first['device']}.",
        "conclusions": conclusions(rows),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("deepspeed", "torch", "transformers"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<14} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def variants_of(config: CompareConfig, base: TrainConfig) -> list[comparing.Variant]:
    """Return what to compare; raises UsageError if that cannot be done."""
    if config.models:
        names = [Path(model).name for model in config.models]
        if len(set(names)) < len(names):
            raise UsageError(f"error: --models: the names must differ, found {', '.join(names)}")
        return [comparing.Variant(n, {"model": m}) for n, m in zip(names, config.models, strict=True)]
    if config.what == "zero":
        stages = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
        return [comparing.Variant(stage, {"deepspeed": stage}) for stage in stages]
    if config.what == "imbalance":
        ways = ("none", "weights", "oversampling", "focal")
        return [comparing.Variant(way, {"imbalance": way, "sample_negative": 0.85}) for way in ways]
    if config.nproc == 1:
        raise UsageError("error: --what parallel: one process has nobody to share with; use --nproc 2")
    # Model-parallel processes work on the same tweets: the global batch stays if each makes as many more passes.
    together = {"gradient_accumulation_steps": base.gradient_accumulation_steps * config.nproc, "deepspeed": "zero0"}
    return [
        comparing.Variant("data", {"parallel": "data", "deepspeed": "zero0"}),
        comparing.Variant("tensor", {"parallel": "tensor", **together}),
        comparing.Variant("pipeline", {"parallel": "pipeline", **together}),
    ]


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words what the table shows: memory, speed and accuracy against the first variant."""
    base, *others = rows
    means = [{metric: mean_and_spread(row["values"][metric]).mean for metric in METRICS} for row in rows]
    sentences = [
        f"{row['variant']}: {mean['held_bytes'] / means[0]['held_bytes']:.2f} times the bytes and "
        f"{mean['tokens_per_second'] / means[0]['tokens_per_second']:.2f} times the tokens/s of {base['variant']}."
        for row, mean in zip(others, means[1:], strict=True)
    ]
    seeds = len(base["values"]["test_accuracy"])
    if seeds == 1:
        return [*sentences, "One seed says nothing of whether the accuracies differ."]
    best = clearly_best({row["variant"]: row["values"]["test_accuracy"] for row in rows}, higher_is_better=True)
    if best is None:
        return [*sentences, f"No variant has the best accuracy beyond doubt at {seeds} seeds: ranges overlap."]
    return [
        *sentences,
        f"{best} has the best accuracy: at {seeds} seeds its worst is better than the best of all others.",
    ]


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
