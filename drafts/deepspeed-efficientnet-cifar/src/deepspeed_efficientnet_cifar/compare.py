"""Several architectures, or one with each stage of ZeRO: accuracy, size, work, speed and memory, with their spread."""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from deepspeed_efficientnet_cifar.config import CompareConfig, TrainConfig

PACKAGE = "deepspeed-efficientnet-cifar"
METRICS: dict[str, dict[str, Any]] = {
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each image once"},
    "parameters": {"unit": "", "higher_is_better": False, "protocol": "numbers that are trained or frozen"},
    "flops_per_image": {
        "unit": "",
        "higher_is_better": False,
        "protocol": "forward pass, a multiplication and an addition are two; counted by torch's FlopCounterMode",
    },
    "images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "test_images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "forward passes of the test set, all processes together",
    },
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, gradients and optimizer state on rank 0 before an optimizer step",
    },
    "peak_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "peak of the process of rank 0"},
}
ZERO = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
HELD = ("parameters", "gradients", "optimizer")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("deepspeed_efficientnet_cifar"))
    load_preset(TrainConfig, path)  # what is wrong with it is said before anything runs
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants(
        "deepspeed_efficientnet_cifar.train", config.config, shared, make_variants(config), config.seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
            "parameters": lambda s: s["num_parameters"],
            "flops_per_image": lambda s: s["flops_per_image"],
            "images_per_second": lambda s: s["throughput"]["images_per_second"],
            "test_images_per_second": lambda s: s["evaluation_images_per_second"],
            "held_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in HELD),
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    pictures = {"images_per_second": "Throughput of training", "test_accuracy": "Test accuracy"}
    pictures |= (
        {"held_bytes": "Parameters, gradients and optimizer state of a process"} if config.what == "zero" else {}
    )
    for metric, title in pictures.items():
        unit = METRICS[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    comparison = {
        "title": "EfficientNets of several sizes" if config.what == "models" else "The stages of ZeRO",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} images of {first['image_size']} "
        f"pixels on {first['world_size']} processes with {first['threads_per_process']} thread(s) each, config "
        f"'{config.config}', seeds 0 to {config.seeds - 1}, variants in turn, each run in fresh processes on "
        f"{first['device']}.",
        "conclusions": conclusions(rows),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch", "deepspeed", "timm"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<20} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def make_variants(config: CompareConfig) -> list[comparing.Variant]:
    """Return the architectures asked for, or DeepSpeed's JSON configs."""
    if config.what == "zero":
        return [comparing.Variant(name, {"deepspeed": name}) for name in ZERO]
    return [comparing.Variant(name, {"model": name}) for name in dict.fromkeys(config.models)]


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Say in words what the figures show, in relation to the first variant."""
    base, *others = rows
    if not others:
        return []
    speed = mean_and_spread(base["values"]["images_per_second"]).mean
    sentences = []
    for row in others:
        values = row["values"]
        ratio = mean_and_spread(values["images_per_second"]).mean / speed
        work = values["flops_per_image"][0] / base["values"]["flops_per_image"][0]
        held = values["held_bytes"][0] / base["values"]["held_bytes"][0]
        sentences.append(
            f"{row['variant']}: {ratio:.2f} times the throughput of {base['variant']}, {work:.2g} times the "
            f"operations, {held:.2g} times the bytes for parameters, gradients and optimizer state."
        )
    accuracies = {row["variant"]: row["values"]["test_accuracy"] for row in rows}
    if len(base["values"]["test_accuracy"]) == 1:
        return [*sentences, "One seed says nothing of whether the accuracies differ."]
    apart = [
        f"{a} and {b}"
        for i, (a, own) in enumerate(accuracies.items())
        for b, other in list(accuracies.items())[i + 1 :]
        if max(min(own), min(other)) > min(max(own), max(other))
    ]
    if apart:
        return [*sentences, f"The accuracies differ at every seed: {'; '.join(apart)}."]
    return [*sentences, "No difference in accuracy can be seen: the ranges of the seeds overlap."]


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
