"""The same training with and without a technique: activation memory, time, and figures of merit with their spread."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from trainyard_shared import comparing, plotting, plotting_anomalies
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir, write_atomically

from fairscale_turbofan_anomaly.config import CompareConfig, TrainConfig

PACKAGE = "fairscale-turbofan-anomaly"
VARIANTS: dict[str, tuple[str, ...]] = {
    "checkpointing": ("none", "fairscale", "torch"),
    "sharding": ("ddp", "oss", "zero_redundancy"),
    "model": ("lstm", "gru", "transformer"),
    "detector": ("supervised", "autoencoder"),
}
MORE_EPOCHS = 4  # of the autoencoder
TITLES = {
    "checkpointing": "Activations kept or computed again",
    "sharding": "Three ways to share out a step",
    "model": "Three networks, and what they have to beat",
    "detector": "With and without labels, and what they have to beat",
}
ALL_WINDOWS = (
    "all windows of unseen engines that run to failure, other engines for each seed; threshold from validation"
)
METRICS: dict[str, dict[str, Any]] = {
    "test_f1": {"unit": "fraction", "higher_is_better": True, "protocol": ALL_WINDOWS},
    "test_pr_auc": {"unit": "fraction", "higher_is_better": True, "protocol": ALL_WINDOWS},
    "stopped_f1": {"unit": "fraction", "higher_is_better": True, "protocol": "all windows of the test file's engines"},
    "last_f1": {"unit": "fraction", "higher_is_better": True, "protocol": "their last windows only"},
    "lead_time": {"unit": "cycles", "protocol": "median over unseen engines that run to failure"},
    "false_alarms": {"unit": "", "higher_is_better": False, "protocol": "for each such engine, over its whole life"},
}
COSTS: dict[str, dict[str, Any]] = {
    "windows_per_second": {
        "unit": "windows/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "activation_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "most in use at a time by the forward and backward pass of a micro-batch",
    },
    "held_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "parameters, gradients and optimizer state on rank 0 after a step",
    },
}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("fairscale_turbofan_anomaly"))
    base = load_preset(TrainConfig, path)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    variants = [comparing.Variant(choice, {config.what: choice}) for choice in VARIANTS[config.what]]
    if config.what == "detector":
        # It learns from healthy windows only, so that an epoch has fewer steps.
        more = {"epochs": MORE_EPOCHS * (config.epochs or base.epochs)}
        variants = [variants[0], comparing.Variant("autoencoder", {"detector": "autoencoder", **more})]
    outcomes = comparing.run_variants(
        "fairscale_turbofan_anomaly.train", config.config, shared, variants, config.seeds, folder
    )
    first = outcomes[0].summary
    rows = comparing.rows(outcomes, {**_of_detector(0), **_costs()})
    metrics = METRICS | COSTS
    if config.what in ("model", "detector"):
        metrics = METRICS
        rows = [
            {**row, "values": {name: values for name, values in row["values"].items() if name in METRICS}}
            for row in rows
        ]
        # The baselines do not depend on the network: those of the first variant's runs.
        own = [outcome for outcome in outcomes if outcome.variant == variants[0].name]
        for place, other in enumerate(first["detectors"][1:], start=1):
            found = comparing.rows(own, _of_detector(place))[0]
            rows.append({"variant": other["name"], "values": found["values"]})
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    pictures = {"test_f1": "F1 on all windows of unseen engines"}
    if config.what in ("checkpointing", "sharding"):
        pictures = {"windows_per_second": "Throughput", "test_f1": pictures["test_f1"]}
    for metric, title in pictures.items():
        unit = metrics[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    sentences = conclusions(rows, config.what)
    if config.what == "checkpointing":
        measured = measure(base, config.lengths)
        lines = [",".join(map(str, row)) for row in [list(measured[0]), *(row.values() for row in measured)]]
        write_atomically(folder / "activations.csv", "\n".join(lines) + "\n")
        draw_memory(measured, base, folder / "plots" / "activation_memory.png")
        sentences += memory_sentences(measured)
    comparison = {
        "title": TITLES[config.what],
        "package": PACKAGE,
        "metrics": metrics,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} windows on {first['world_size']} "
        f"processes with {first['threads_per_process']} thread(s) each, config '{config.config}', seeds 0 to "
        f"{config.seeds - 1}, variants in turn, each run in fresh processes on {first['device']}."
        + (f" The autoencoder makes {MORE_EPOCHS} times the epochs." if config.what == "detector" else ""),
        "conclusions": sentences,
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": list(dict.fromkeys(note for outcome in outcomes for note in outcome.summary["notes"])),
        "versions": provenance(("torch", "fairscale"))["versions"],
    }
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, metrics[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<18} " + "   ".join(figures))
    for sentence in sentences:
        say(sentence)
    say(f"report: {report}")


def measure(base: TrainConfig, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure activation bytes, time and gradients of one step of the network for each length, with each way.

    Returns:
        A row for each length and way: `length`, `way`, `activation_bytes`, `seconds` (the quickest of three) and
        `largest_difference` of a gradient from that without checkpointing, as a share of the largest gradient.
    """
    import torch
    import torch.utils.checkpoint
    from torch.nn import functional

    from fairscale_turbofan_anomaly import checkpointing
    from fairscale_turbofan_anomaly.model import build_model

    def loss(output: Any, windows: Any) -> Any:
        if base.detector == "autoencoder":
            return functional.mse_loss(output, windows)
        return functional.binary_cross_entropy_with_logits(output, torch.ones_like(output))

    rows: list[dict[str, Any]] = []
    for length in lengths:
        torch.manual_seed(0)
        windows = torch.randn(16, length, 14)
        plain: list[Any] = []
        for way in VARIANTS["checkpointing"]:
            # Without dropout: chunks would draw other units to drop than one call for the whole window.
            config = dataclasses.replace(base, **{"checkpointing": way, "dropout": 0.0})  # type: ignore[arg-type]
            torch.manual_seed(0)
            model = checkpointing.apply(build_model(config, 14), way).train()
            activation_bytes = checkpointing.activation_bytes(model, windows, loss)
            seconds = []
            for _ in range(3):
                model.zero_grad()
                start = time.perf_counter()
                loss(model(windows), windows).backward()
                seconds.append(time.perf_counter() - start)
            gradients = [parameter.grad for parameter in model.parameters()]
            plain = plain or gradients
            largest = max(gradient.abs().max().item() for gradient in plain)
            difference = max((a - b).abs().max().item() for a, b in zip(gradients, plain, strict=True)) / largest
            rows.append(
                {
                    "length": length,
                    "way": way,
                    "activation_bytes": activation_bytes,
                    "seconds": min(seconds),
                    "largest_difference": difference,
                }
            )
    return rows


def draw_memory(measured: list[dict[str, Any]], base: TrainConfig, path: Path) -> None:
    """Draw activation bytes over lengths."""
    labels = {"none": "all kept", "fairscale": "FairScale", "torch": "PyTorch's successor"}
    plotting_anomalies.memory_over_length(
        list(dict.fromkeys(row["length"] for row in measured)),
        {label: [row["activation_bytes"] for row in measured if row["way"] == way] for way, label in labels.items()},
        path,
        subtitle=f"{base.model} of {base.num_layers} layers of {base.hidden_size}, 16 windows, chunks of {base.chunk} "
        "cycles; most in use at a time, forward and backward",
    )


def memory_sentences(measured: list[dict[str, Any]]) -> list[str]:
    """Say what was measured for each length."""
    sentences = []
    for row in measured:
        if row["way"] == "none":
            plain = row
            continue
        sentences.append(
            f"{row['length']} cycles, {row['way']}: {row['activation_bytes'] / plain['activation_bytes']:.1%} of the "
            f"activations, {row['seconds'] / plain['seconds']:.2f} times the time, gradients differ by "
            f"{row['largest_difference']:.0e} of the largest."
        )
    return sentences


def conclusions(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Say in words what the figures show.

    Args:
        rows: of the table, the first being what the others are compared with.
        what: was compared.
    """
    sentences = []
    if what in ("checkpointing", "sharding"):
        base, *others = rows
        for row in others:
            ratio = {
                metric: mean_and_spread(row["values"][metric]).mean / mean_and_spread(base["values"][metric]).mean
                for metric in COSTS
            }
            sentences.append(
                f"{row['variant']}: {ratio['windows_per_second']:.2f} times the throughput of {base['variant']}, "
                f"{ratio['activation_bytes']:.0%} of its activations, {ratio['held_bytes']:.0%} of its bytes for "
                "parameters, gradients and optimizer state."
            )
    values = {row["variant"]: row["values"]["test_f1"] for row in rows}
    if len(next(iter(values.values()))) == 1:
        return [*sentences, "One seed says nothing of whether the F1 differ."]
    best = clearly_best(values, higher_is_better=True)
    if best:
        return [*sentences, f"F1: {best} is the best at every seed."]
    if what in ("model", "detector"):
        networks, others = VARIANTS[what], [name for name in values if name not in VARIANTS[what]]
        ahead = [name for name in networks if all(min(values[name]) > max(values[other]) for other in others)]
        paired = [
            name
            for name in networks
            if all(own > rival for other in others for own, rival in zip(values[name], values[other], strict=True))
        ]
        if ahead:
            sentences.append(f"F1: the worst seed of {', '.join(ahead)} is above the best seed of every baseline.")
        if paired:
            sentences.append(f"F1: on the engines of every seed, {', '.join(paired)} is above every baseline.")
        return [*sentences, "The ranges of at least two variants overlap."]
    return [*sentences, "No difference in F1 can be seen: the ranges of the seeds overlap."]


def _of_detector(place: int) -> dict[str, Any]:
    """How to read the figures of a detector from a summary: 0 is the network, then the baselines."""

    def read(part: str, figure: str) -> Any:
        return lambda summary: float(summary["detectors"][place][part][figure])

    def lead_time(summary: dict[str, Any]) -> float:
        leads = [float(lead) for lead in summary["detectors"][place]["lead_times"] if lead != "nan"]
        return sorted(leads)[len(leads) // 2] if leads else float("nan")

    return {
        "test_f1": read("test", "f1"),
        "test_pr_auc": read("test", "pr_auc"),
        "stopped_f1": read("stopped", "f1"),
        "last_f1": read("last", "f1"),
        "lead_time": lead_time,
        "false_alarms": lambda summary: summary["detectors"][place]["false_alarms_per_engine"],
    }


def _costs() -> dict[str, Any]:
    parts = ("parameters", "gradients", "optimizer")
    return {
        "windows_per_second": lambda s: s["throughput"]["windows_per_second"],
        "activation_bytes": lambda s: s["memory"]["predicted_bytes"]["activations"],
        "held_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in parts),
    }


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
