"""The same training of several pretrained models, or with 1 process and with N: accuracy and speed.

All variants share the global batch, and so the number of steps; with several processes the batches are the very same,
and only who computes them differs. Every process gets the same number of threads, because a lone process that may use
all cores is not the baseline of a speed-up.
"""

from pathlib import Path
from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from torchdist_imdb.config import CompareConfig

PACKAGE = "torchdist-imdb"
METRICS: dict[str, dict[str, Any]] = {
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each review once"},
    "test_roc_auc": {"unit": "", "higher_is_better": True, "protocol": "of the same outputs"},
    "tokens_per_second": {
        "unit": "tokens/s",
        "higher_is_better": True,
        "protocol": "without padding; training steps only, all processes together",
    },
    "train_s": {"unit": "s", "higher_is_better": False, "protocol": "wall time of training and validation"},
    "peak_bytes": {"unit": "bytes", "protocol": "peak of the process of rank 0"},
}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: two models have the same name.
        TrainyardError: a run failed.
    """
    _, name = find_config(config.config, preset_folder("torchdist_imdb"))
    processes = sorted(set(config.nproc))
    if config.models:
        names = [Path(model).name for model in config.models]
        if len(set(names)) < len(names):
            raise UsageError(f"error: --models: the names must differ, found {', '.join(names)}")
        variants = [
            comparing.Variant(short, {"model": model, "nproc": processes[-1]})
            for short, model in zip(names, config.models, strict=True)
        ]
    else:
        variants = [
            comparing.Variant(f"{nproc} process{'es' if nproc > 1 else ''}", {"nproc": nproc}) for nproc in processes
        ]
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads}
    for field in ("data_dir", "epochs"):
        if getattr(config, field) is not None:
            shared[field] = getattr(config, field)
    outcomes = comparing.run_variants("torchdist_imdb.train", config.config, shared, variants, config.seeds, folder)
    rows = comparing.rows(
        outcomes,
        {
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "test_roc_auc": lambda s: s["metrics"]["test_roc_auc"]["value"],
            "tokens_per_second": lambda s: s["throughput"]["tokens_per_second"],
            "train_s": lambda s: s["phases_s"]["train"],
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    plots = folder / "plots"
    plotting.comparison_bars(
        rows, "test_accuracy", plots / "test_accuracy.png", unit="fraction", title="Test accuracy", note=note
    )
    if config.models:
        plotting.comparison_bars(
            rows, "tokens_per_second", plots / "throughput.png", unit="tokens/s", title="Throughput", note=note
        )
    else:
        plotting.scaling(
            processes,
            [row["values"]["tokens_per_second"] for row in rows],
            plots / "scaling.png",
            unit="tokens/s",
            title="Throughput by number of processes",
            note=note,
        )
    what = f"{processes[-1]} process(es)" if config.models else "the very same batches"
    comparison = {
        "title": "Pretrained models" if config.models else "One process against several",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} reviews, {what}, "
        f"{config.num_threads} thread(s) a process, config '{config.config}', seeds 0 to {config.seeds - 1}, variants "
        f"in turn, each run in fresh processes on {first['device']}. Validation and the start of the processes are not "
        "in the throughput.",
        "conclusions": about_accuracy(rows)
        if config.models
        else [*about_speed(rows, processes), *about_accuracy(rows)],
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch", "transformers"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<12} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def about_speed(rows: list[dict[str, Any]], processes: list[int]) -> list[str]:
    """Say in words what several processes gain: speed-up and efficiency."""
    means = [mean_and_spread(row["values"]["tokens_per_second"]).mean for row in rows]
    return [
        f"{row['variant']}: {mean / means[0]:.2f} times the throughput, an efficiency of "
        f"{mean / means[0] / (count / processes[0]):.0%}."
        for row, mean, count in zip(rows[1:], means[1:], processes[1:], strict=True)
    ]


def about_accuracy(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words whether the accuracies can be told apart."""
    values_of = {row["variant"]: row["values"]["test_accuracy"] for row in rows}
    seeds = len(rows[0]["values"]["test_accuracy"])
    if seeds == 1:
        return ["One seed says nothing of whether the accuracies differ."]
    best = clearly_best(values_of, higher_is_better=True)
    if best is None:
        return [f"No variant has the best accuracy beyond doubt at {seeds} seeds: ranges overlap."]
    return [f"{best} has the best accuracy: at {seeds} seeds its worst is better than the best of all others."]


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
