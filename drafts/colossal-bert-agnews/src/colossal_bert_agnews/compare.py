"""One training with each parallel layout, each model, with and without cleaning, or with each kind of augmentation.

All variants share the global batch, and so the steps. What layouts should share as well, the accuracy, is in the table;
what they should not, the bytes that a process holds, is beside it, predicted and measured.
"""

import dataclasses
from pathlib import Path
from typing import Any, get_args

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from colossal_bert_agnews import layout
from colossal_bert_agnews.config import Augmentation, CompareConfig, TrainConfig

PACKAGE = "colossal-bert-agnews"
METRICS: dict[str, dict[str, Any]] = {
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "all test articles, each once"},
    "test_f1": {"unit": "fraction", "higher_is_better": True, "protocol": "mean of the F1 of all classes"},
    "tokens_per_second": {
        "unit": "tokens/s",
        "higher_is_better": True,
        "protocol": "without padding; training steps only, all processes together",
    },
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, gradients and optimizer state of the process that holds most, measured within a step",
    },
    "predicted_bytes": {"unit": "bytes", "protocol": "the same of rank 0, by the shapes of its parts"},
}
STATE = ("parameters", "gradients", "optimizer")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: two models have the same name, or the processes are too few.
        TrainyardError: a run failed.
    """
    file, name = find_config(config.config, preset_folder("colossal_bert_agnews"))
    variants = variants_of(config, load_preset(TrainConfig, file))
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc, "baseline": False}
    for field in ("data_dir", "epochs", "model", "num_train"):
        if getattr(config, field) is not None:
            shared[field] = getattr(config, field)
    outcomes = comparing.run_variants(
        "colossal_bert_agnews.train", config.config, shared, variants, config.seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "test_f1": lambda s: s["metrics"]["test_f1"]["value"],
            "tokens_per_second": lambda s: s["throughput"]["tokens_per_second"],
            "held_bytes": lambda s: max(
                sum(rank[part] for part in STATE) for rank in s["memory"]["measured_bytes_per_rank"]
            ),
            "predicted_bytes": lambda s: sum(s["memory"]["predicted_bytes"][part] for part in STATE),
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    for metric, title in (
        ("test_accuracy", "Test accuracy"),
        ("tokens_per_second", "Throughput"),
        ("held_bytes", "Held by the process that holds most"),
    ):
        path = folder / "plots" / f"{metric}.png"
        plotting.comparison_bars(rows, metric, path, unit=METRICS[metric]["unit"], title=title, note=note)
    titles = {"layouts": "Parallel layouts", "cleaning": "Cleaning", "augmentation": "Augmentation"}
    comparison = {
        "title": "Models" if config.models else titles[config.what],
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} articles, {config.nproc} processes, "
        f"{config.num_threads} thread(s) each, config '{config.config}', seeds 0 to {config.seeds - 1}, variants in "
        f"turn, each run in fresh processes on {first['device']}.",
        "conclusions": conclusions(rows),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("colossalai", "torch", "transformers"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<18} " + "   ".join(figures))
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
    if config.what == "cleaning":
        return [
            comparing.Variant("as published", {"clean": False, "remove_stop_words": False}),
            comparing.Variant("cleaned", {"clean": True, "remove_stop_words": False}),
            comparing.Variant("no stop words", {"clean": True, "remove_stop_words": True}),
        ]
    if config.what == "augmentation":
        return [comparing.Variant(kind, {"augmentation": kind}) for kind in get_args(Augmentation)]
    if config.nproc == 1:
        raise UsageError("error: --what layouts: one process has nobody to share with; use --nproc 2")
    # Processes that share a copy work on the same articles: the global batch stays if each makes as many more passes.
    passes = base.gradient_accumulation_steps * config.nproc
    half = config.nproc // 2
    sizes = {"data": (1, 1), "tensor": (config.nproc, 1)}
    if config.nproc == 2:
        sizes["pipeline"] = (1, 2)
    elif config.nproc % 2 == 0:
        sizes |= {"tensor x pipeline": (half, 2), "tensor x data": (half, 1), "pipeline x data": (1, 2)}
    variants = [
        comparing.Variant(
            name,
            {
                "tp_size": tp,
                "pp_size": pp,
                "dp_size": config.nproc // (tp * pp),
                "gradient_accumulation_steps": passes * tp * pp // config.nproc,
            },
        )
        for name, (tp, pp) in sizes.items()
    ]
    for variant in variants:  # what does not fit is said before the first of them is trained
        layout.check(dataclasses.replace(base, **variant.overrides), config.nproc)
    return variants


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
