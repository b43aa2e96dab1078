"""The same training in 32 and 16 bits, or sharded in five ways: time, memory and accuracy, with their spread."""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from fairscale_cifar_amp.config import CompareConfig, TrainConfig

PACKAGE = "fairscale-cifar-amp"
METRICS: dict[str, dict[str, Any]] = {
    "epoch_s": {
        "unit": "s",
        "higher_is_better": False,
        "protocol": "training steps of an epoch, validation not counted",
    },
    "images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each image once"},
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, gradients and optimizer state on rank 0 after a step",
    },
    "activation_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "kept by the forward pass of a micro-batch for the backward pass; predicted from smaller ones",
    },
    "peak_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "peak of the process of rank 0"},
}
SHARDINGS = ("oss", "fairscale_fsdp", "ddp", "zero_redundancy", "fsdp2")
HELD = ("parameters", "gradients", "optimizer")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("fairscale_cifar_amp"))
    base = load_preset(TrainConfig, path)
    variants = make_variants(config.what)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants(
        "fairscale_cifar_amp.train", config.config, shared, variants, config.seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "epoch_s": lambda s: s["data"]["num_train"] / s["throughput"]["images_per_second"],
            "images_per_second": lambda s: s["throughput"]["images_per_second"],
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "held_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in HELD),
            "activation_bytes": lambda s: s["memory"]["predicted_bytes"]["activations"],
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    for metric, title in (("images_per_second", "Throughput"), ("test_accuracy", "Test accuracy")):
        unit = METRICS[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    comparison = {
        "title": "Mixed precision against 32 bits" if config.what == "precision" else "Five ways to share out a step",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} images on {first['world_size']} "
        f"processes with {first['threads_per_process']} thread(s) each, config '{config.config}', seeds 0 to "
        f"{config.seeds - 1}, variants in turn, each run in fresh processes on {first['device']}.",
        "conclusions": conclusions(
            rows, config.what, base.precision, notes=first["notes"] + outcomes[-1].summary["notes"]
        ),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch", "fairscale"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<16} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def make_variants(what: str) -> list[comparing.Variant]:
    """Return the precisions that this machine has, or the ways of sharding."""
    if what == "sharding":
        return [comparing.Variant(sharding, {"sharding": sharding}) for sharding in SHARDINGS]
    import torch

    precisions = ("fp32", "bf16", "fp16") if torch.cuda.is_available() else ("fp32", "bf16")
    return [comparing.Variant(precision, {"precision": precision}) for precision in precisions]


def conclusions(rows: list[dict[str, Any]], what: str, precision: str, notes: list[str]) -> list[str]:
    """Say in words what the figures show: speed, memory, and whether accuracies can be told apart.

    Args:
        rows: of the table.
        what: precision or sharding.
        precision: of the sharding variants.
        notes: of the runs, which say if a CPU lacks 16-bit units.
    """
    base = next(row for row in rows if row["variant"] == ("fp32" if what == "precision" else "ddp"))
    speed = mean_and_spread(base["values"]["images_per_second"]).mean
    sentences = []
    for row in rows:
        if row is base:
            continue
        ratio = mean_and_spread(row["values"]["images_per_second"]).mean / speed
        text = f"{row['variant']}: {ratio:.2f} times the throughput of {base['variant']}"
        if what == "precision":
            activations = row["values"]["activation_bytes"][0] / base["values"]["activation_bytes"][0]
            text += f", {activations:.0%} of its activations."
        else:
            held = row["values"]["held_bytes"][0] / base["values"]["held_bytes"][0]
            text += f", {held:.0%} of its bytes for parameters, gradients and optimizer state."
        sentences.append(text)
        own, other = row["values"]["test_accuracy"], base["values"]["test_accuracy"]
        if len(own) > 1 and max(min(own), min(other)) > min(max(own), max(other)):
            sentences.append(f"{row['variant']}: the accuracies differ at {len(own)} seeds (ranges do not overlap).")
    if len(base["values"]["test_accuracy"]) == 1:
        sentences.append("One seed says nothing of whether the accuracies differ.")
    elif not any("accuracies differ" in sentence for sentence in sentences):
        sentences.append("No difference in accuracy can be seen: the ranges of the seeds overlap.")
    sentences += [note[0].upper() + note[1:] + "." for note in dict.fromkeys(notes) if "no bf16 units" in note]
    if what == "sharding" and precision == "fp32":
        sentences.append("All in 32 bits: the ways compute the same numbers, so differences of accuracy are rounding.")
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
