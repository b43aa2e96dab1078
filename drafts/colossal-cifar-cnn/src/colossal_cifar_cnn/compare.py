"""Plugins, optimizers with their learning rates, or numbers of processes: time, communication, memory and accuracy.

All variants share the global batch and the number of steps. Learning rates are judged by the validation accuracy, which
stands beside the test accuracy: the best of a dozen variants is chosen, and the test set must have no part in it.
"""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from colossal_cifar_cnn.config import USUAL, CompareConfig, TrainConfig

PACKAGE = "colossal-cifar-cnn"
HELD = ("parameters", "masters", "gradients", "optimizer")
METRICS: dict[str, dict[str, Any]] = {
    "images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "communication_share": {
        "unit": "fraction",
        "higher_is_better": False,
        "protocol": "of some profiled steps, mean of the processes; a collective is under way, waiting included",
    },
    "val_accuracy": {
        "unit": "fraction",
        "higher_is_better": True,
        "protocol": "held-out training images, best epoch",
    },
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each image once"},
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, masters, gradients and optimizer state on rank 0 after a step",
    },
    "optimizer_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "optimizer state on rank 0"},
    "peak_bytes": {"unit": "bytes", "protocol": "peak of the process of rank 0, libraries included"},
}
TITLES = {
    "plugins": "Plugins of the Booster",
    "optimizers": "Optimizers at several learning rates",
    "processes": "One process against several",
}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        UsageError: the global batch cannot be shared out evenly.
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("colossal_cifar_cnn"))
    base = load_preset(TrainConfig, path)
    global_batch = base.global_batch_size or (
        base.micro_batch_size * base.gradient_accumulation_steps * max(config.nproc)
    )
    variants = make_variants(config, base, global_batch)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {
        "num_threads": config.num_threads,
        "nproc": max(config.nproc),
        "global_batch_size": global_batch,
    }
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants("colossal_cifar_cnn.train", config.config, shared, variants, config.seeds, folder)
    rows = comparing.rows(
        outcomes,
        {
            "images_per_second": lambda s: s["throughput"]["images_per_second"],
            "communication_share": lambda s: s["throughput"]["communication_share"] or 0.0,
            "val_accuracy": lambda s: s["val_accuracy"] if s["val_accuracy"] is not None else float("nan"),
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "held_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in HELD),
            "optimizer_bytes": lambda s: s["memory"]["measured_bytes"]["optimizer"],
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    for metric, title in (("images_per_second", "Throughput"), ("test_accuracy", "Test accuracy")):
        unit = METRICS[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    if config.what == "processes":
        plotting.scaling(
            [int(row["variant"].split()[0]) for row in rows],
            [row["values"]["images_per_second"] for row in rows],
            folder / "plots" / "scaling.png",
            title="Throughput by number of processes",
            note=note,
        )
    comparison = {
        "title": TITLES[config.what],
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {global_batch} images, {config.num_threads} thread(s) a process, "
        f"config '{config.config}', seeds 0 to {config.seeds - 1}, variants in turn, each run in fresh processes on "
        f"{first['device']}.",
        "conclusions": conclusions(rows, config.what),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": left_out(base) if config.what == "plugins" else [],
    } | {"versions": provenance(("torch", "colossalai"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<16} " + "   ".join(figures))
    for sentence in [*comparison["conclusions"], *comparison["notes"]]:
        say(sentence)
    say(f"report: {report}")


def make_variants(config: CompareConfig, base: TrainConfig, global_batch: int) -> list[comparing.Variant]:
    """Return what is to be compared.

    Raises:
        UsageError: the global batch does not divide by a number of processes.
    """
    counts = sorted(set(config.nproc)) if config.what == "processes" else [max(config.nproc)]
    for count in counts:
        if global_batch % (count * base.gradient_accumulation_steps):
            raise UsageError(
                f"error: --nproc {count}: the global batch of {global_batch} images does not divide by {count}"
            )
    if config.what == "processes":
        return [comparing.Variant(f"{n} process" + ("es" if n > 1 else ""), {"nproc": n}) for n in counts]
    if config.what == "optimizers":
        return [
            comparing.Variant(
                f"{optimizer} {rate:.2g}", {"optimizer": optimizer, "learning_rate": rate, "weight_decay": None}
            )
            for optimizer in config.optimizers
            for rate in (USUAL[optimizer].learning_rate * factor for factor in config.learning_rate_factors)
        ]
    names = ["ddp", "zero1", "zero2"] + ([] if left_out(base) else ["gemini"])
    return [comparing.Variant(name, {"plugin": name}) for name in names]


def left_out(base: TrainConfig) -> list[str]:
    """Say why Gemini cannot take part, if it cannot."""
    wanted = {"precision": ("bf16", "fp16"), "optimizer": ("hybrid_adam",), "norm": ("group",)}
    missing = [f"{field}: {values[0]}" for field, values in wanted.items() if getattr(base, field) not in values]
    return [f"gemini is left out: it would need a config with {', '.join(missing)}"] if missing else []


def conclusions(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Say in words what the figures show: speed, memory, and whether accuracies can be told apart."""
    sentences = []
    if what == "optimizers":
        by_optimizer: dict[str, dict[str, Any]] = {}
        for row in rows:
            name = row["variant"].split()[0]
            accuracy = mean_and_spread(row["values"]["val_accuracy"]).mean
            if (
                name not in by_optimizer
                or accuracy > mean_and_spread(by_optimizer[name]["values"]["val_accuracy"]).mean
            ):
                by_optimizer[name] = row
        for name, row in by_optimizer.items():
            sentences.append(
                f"{name}: best at a learning rate of {row['variant'].split()[1]}, "
                f"{_text(row['values']['val_accuracy'], 'fraction')} of the validation images, "
                f"{_text(row['values']['test_accuracy'], 'fraction')} of the test images."
            )
        return sentences
    base = rows[0]
    speed = mean_and_spread(base["values"]["images_per_second"]).mean
    for row in rows[1:]:
        ratio = mean_and_spread(row["values"]["images_per_second"]).mean / speed
        text = f"{row['variant']}: {ratio:.2f} times the throughput of {base['variant']}"
        if what == "plugins":
            state = row["values"]["optimizer_bytes"][0] / base["values"]["optimizer_bytes"][0]
            text += f", {state:.0%} of its optimizer state on a process"
        sentences.append(text + ".")
        own, other = row["values"]["test_accuracy"], base["values"]["test_accuracy"]
        if len(own) > 1 and max(min(own), min(other)) > min(max(own), max(other)):
            sentences.append(f"{row['variant']}: the accuracies differ at {len(own)} seeds (ranges do not overlap).")
    if len(base["values"]["test_accuracy"]) == 1:
        sentences.append("One seed says nothing of whether the accuracies differ.")
    elif not any("accuracies differ" in sentence for sentence in sentences):
        sentences.append("No difference in accuracy can be seen: the ranges of the seeds overlap.")
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
