"""LSTM against GRU, returns against log prices as the target, one process against several: one change at a time.

All variants share the global batch, and so the learning rate and the number of steps. Every process gets the same
number of threads, because a lone process that may use all cores is not the baseline of a speed-up. The baselines that
take minutes are left out: they are the same for all variants.
"""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from torchdist_stocks.config import CompareConfig, TrainConfig

PACKAGE = "torchdist-stocks"
METRICS: dict[str, dict[str, Any]] = {
    "mae_to_last_value": {
        "unit": "",
        "higher_is_better": False,
        "protocol": "mean absolute error of the log price as a share of the last value's, all test windows and days",
    },
    "directional_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "of tomorrow's change"},
    "interval_coverage": {"unit": "fraction", "protocol": "outcomes within the forecast interval"},
    "windows_per_second": {
        "unit": "windows/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "train_s": {"unit": "s", "higher_is_better": False, "protocol": "wall time of training and validation"},
}
TARGETS = {"return": "returns", "log_price": "log prices"}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: the global batch cannot be shared out evenly.
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("torchdist_stocks"))
    base = load_preset(TrainConfig, path)
    variants = make_variants(config, base.micro_batch_size * max(config.nproc))
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "baselines": "simple"}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants("torchdist_stocks.train", config.config, shared, variants, config.seeds, folder)
    rows = comparing.rows(
        outcomes,
        {
            "mae_to_last_value": lambda s: s["metrics"]["mae_to_last_value"]["value"],
            "directional_accuracy": lambda s: s["metrics"]["directional_accuracy"]["value"],
            "interval_coverage": lambda s: s["metrics"]["interval_coverage"]["value"],
            "windows_per_second": lambda s: s["throughput"]["windows_per_second"],
            "train_s": lambda s: s["phases_s"]["train"],
        },
    )
    data = outcomes[0].summary["data"]
    note = "generated sample data" if data["kind"] == "sample" else ""
    for metric in ("mae_to_last_value", "directional_accuracy", "windows_per_second"):
        unit = METRICS[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, note=note)
    comparison = {
        "title": "Networks, targets and processes",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": data,
        "protocol": f"Equal for all: global batch of {outcomes[0].summary['global_batch_size']} windows, "
        f"{config.num_threads} thread(s) a process, config '{config.config}', seeds 0 to {config.seeds - 1}, variants "
        f"in turn, each run in fresh processes on {outcomes[0].summary['device']}. The seed changes initial weights "
        "and order; prices and folds are the same.",
        "conclusions": conclusions(rows),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch",))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<32} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def make_variants(config: CompareConfig, global_batch: int) -> list[comparing.Variant]:
    """Return the first of all choices, and each other choice by itself.

    Raises:
        UsageError: the global batch cannot be shared out evenly.
    """
    first = (config.models[0], config.targets[0], config.nproc[0])
    chosen = dict.fromkeys(
        [
            *((model, *first[1:]) for model in config.models),
            *((first[0], target, first[2]) for target in config.targets),
            *((*first[:2], nproc) for nproc in config.nproc),
        ]
    )
    variants = []
    for model, target, nproc in chosen:
        micro, rest = divmod(global_batch, nproc)
        if rest:
            raise UsageError(
                f"error: --nproc {nproc}: the global batch of {global_batch} windows does not divide by {nproc}"
            )
        name = f"{model.upper()}, {TARGETS[target]}, {nproc} process" + ("es" if nproc > 1 else "")
        overrides = {"model": model, "target": target, "nproc": nproc, "micro_batch_size": micro}
        variants.append(comparing.Variant(name, overrides))
    return variants


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words what the figures show: each variant against the first, and the best against the last value."""
    first, sentences = rows[0], []
    for row in rows[1:]:
        pair = {r["variant"]: r["values"]["mae_to_last_value"] for r in (first, row)}
        best = clearly_best(pair, higher_is_better=False)
        own, of_first = (
            mean_and_spread(values).mean for values in (row["values"]["mae_to_last_value"], pair[first["variant"]])
        )
        num_seeds = len(row["values"]["mae_to_last_value"])
        if num_seeds == 1:
            found = "one seed says nothing of whether the errors differ"
        elif best is None:
            found = f"no difference in the errors to be seen at {num_seeds} seeds (ranges overlap)"
        else:
            found = (
                f"the error of '{best}' is smaller in every one of {num_seeds} seeds ({own:.4f} against {of_first:.4f})"
            )
        speed, of_first_speed = (mean_and_spread(r["values"]["windows_per_second"]).mean for r in (row, first))
        sentences.append(
            f"{row['variant']} against {first['variant']}: {found}; {speed / of_first_speed:.2f} times the speed."
        )
    smallest = min(rows, key=lambda row: mean_and_spread(row["values"]["mae_to_last_value"]).mean)
    values = smallest["values"]["mae_to_last_value"]
    sentences.append(
        f"The smallest mean error, that of {smallest['variant']}, is {mean_and_spread(values).mean:.4f} times that of "
        "'tomorrow = today'; whether that is more than chance is in the report of each run."
    )
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
