"""The same training with 1 process and with N: speed-up, efficiency, and whether the accuracy stays the same.

All variants share the global batch, and so the learning rate and the number of steps; only how many processes compute
a step differs. Every process gets the same number of threads, because a lone process that may use all cores is not the
baseline of a speed-up.
"""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from torchdist_cifar.config import CompareConfig, TrainConfig

PACKAGE = "torchdist-cifar"
METRICS: dict[str, dict[str, Any]] = {
    "images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each image once"},
    "train_s": {"unit": "s", "higher_is_better": False, "protocol": "wall time of training and validation"},
    "peak_bytes": {"unit": "bytes", "protocol": "peak of the process of rank 0, libraries included"},
}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: the global batch cannot be shared out evenly.
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("torchdist_cifar"))
    base = load_preset(TrainConfig, path)
    global_batch = base.micro_batch_size * base.gradient_accumulation_steps * max(config.nproc)
    variants = []
    for nproc in sorted(set(config.nproc)):
        micro, rest = divmod(global_batch, nproc * base.gradient_accumulation_steps)
        if rest:
            raise UsageError(
                f"error: --nproc {nproc}: the global batch of {global_batch} images does not divide by {nproc}"
            )
        variant = f"{nproc} process" + ("es" if nproc > 1 else "")
        variants.append(comparing.Variant(variant, {"nproc": nproc, "micro_batch_size": micro}))

    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants("torchdist_cifar.train", config.config, shared, variants, config.seeds, folder)
    rows = comparing.rows(
        outcomes,
        {
            "images_per_second": lambda s: s["throughput"]["images_per_second"],
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "train_s": lambda s: s["phases_s"]["train"],
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    data = outcomes[0].summary["data"]
    note = "generated sample data" if data["kind"] == "sample" else ""
    processes = [int(row["variant"].split()[0]) for row in rows]
    plotting.scaling(
        processes,
        [row["values"]["images_per_second"] for row in rows],
        folder / "plots" / "scaling.png",
        title="Throughput by number of processes",
        note=note,
    )
    plotting.comparison_bars(
        rows, "test_accuracy", folder / "plots" / "test_accuracy.png", unit="fraction", title="Test accuracy", note=note
    )
    comparison = {
        "title": "One process against several",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": data,
        "protocol": f"Equal for all: global batch of {global_batch} images, {config.num_threads} thread(s) a process, "
        f"config '{config.config}', seeds 0 to {config.seeds - 1}, variants in turn, each run in fresh processes on "
        f"{outcomes[0].summary['device']}. Validation and the start of the processes are not in the throughput.",
        "conclusions": conclusions(rows, processes),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch",))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{name} {_text(values, METRICS[name]['unit'])}" for name, values in row["values"].items())
        say(f"{row['variant']:<12} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def conclusions(rows: list[dict[str, Any]], processes: list[int]) -> list[str]:
    """Say in words what the figures show: speed-up and efficiency, and whether accuracies can be told apart."""
    sentences = []
    base_speed = mean_and_spread(rows[0]["values"]["images_per_second"]).mean
    base = rows[0]["values"]["test_accuracy"]
    for row, count in zip(rows[1:], processes[1:], strict=True):
        speed_up = mean_and_spread(row["values"]["images_per_second"]).mean / base_speed
        efficiency = speed_up / (count / processes[0])
        sentences.append(f"{row['variant']}: {speed_up:.2f} times the throughput, an efficiency of {efficiency:.0%}.")
        own = row["values"]["test_accuracy"]
        overlap = max(min(own), min(base)) <= min(max(own), max(base))
        if len(own) == 1:
            sentences.append("One seed says nothing of whether the accuracies differ.")
        elif overlap:
            sentences.append(
                f"{row['variant']}: no difference in accuracy to be seen at {len(own)} seeds (ranges overlap)."
            )
        else:
            sentences.append(f"{row['variant']}: the accuracies differ at {len(own)} seeds (ranges do not overlap).")
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
